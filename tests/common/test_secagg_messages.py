"""Every message decodes to what was encoded; everything else is a `DecodeError`, in little memory."""

import contextlib
import dataclasses
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.errors import DecodeError, ValidationError
from common.roster import MAXIMUM_MEMBERS
from common.secagg_messages import (
    SEALED_BYTES,
    Advert,
    AdvertList,
    Confirmation,
    ConfirmRequest,
    ShareDelivery,
    ShareList,
    UnmaskRequest,
    UnmaskResponse,
    UploadHeader,
    advert_outline,
    advert_set_hash,
    share_context,
    survivor_statement,
)
from common.secagg_parameters import AttemptContext

CONTEXT = AttemptContext(
    plan_hash=b"p" * 32, model_hash=b"m" * 32, parameters_hash=b"q" * 32, round=3, attempt=2, nonce=b"n" * 32
)
ADVERT = Advert(
    name="north",
    context=CONTEXT,
    encryption_key=b"e" * 32,
    mask_key=b"k" * 32,
    self_mask_commitment=b"c" * 32,
    signature=b"s" * 64,
)
BOXES = ((0, b"a" * SEALED_BYTES), (7, b"b" * SEALED_BYTES))
SIGNATURES = ((1, b"s" * 64), (2, b"t" * 64))
MESSAGES = [
    ADVERT,
    AdvertList(cohort_threshold=3, share_threshold=2, degree=4, adverts=(ADVERT.encode(), b"any bytes")),
    ShareList(advert_set=b"h" * 32, sealed=BOXES),
    ShareDelivery(advert_set=b"h" * 32, share_set=(0, 7, 9), sealed=BOXES),
    UploadHeader(
        position=4, share_context=b"h" * 32, length=22_000_000, vector_hash=b"v" * 32, signature=b"s" * 64
    ),
    ConfirmRequest(alive=(0, 1, 2), dead=(5,)),
    Confirmation(position=4095, signature=b"s" * 64),
    UnmaskRequest(alive=(0, 1, 2), dead=(), signatures=SIGNATURES),
    UnmaskResponse(
        position=1,
        share_context=b"h" * 32,
        self_mask_shares=((0, b"x" * 33),),
        mask_key_shares=((1, b"y" * 33),),
    ),
]
KINDS = [type(message) for message in MESSAGES]

each_message = pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)


@each_message
def test_a_message_survives_the_wire(message):
    assert type(message).decode(message.encode()) == message


@each_message
def test_every_shorter_message_is_refused(message):
    data = message.encode()
    for length in range(len(data)):
        with pytest.raises(DecodeError):
            type(message).decode(data[:length])


@each_message
@pytest.mark.parametrize(("at", "words"), [(0, "does not begin as"), (4, "has version"), (5, "came where a")])
def test_another_header_is_refused(message, at, words):
    data = bytearray(message.encode())
    data[at] ^= 0x40
    with pytest.raises(DecodeError, match=words):
        type(message).decode(bytes(data))


@each_message
def test_trailing_bytes_are_refused(message):
    with pytest.raises(DecodeError):
        type(message).decode(message.encode() + b"\0")


@each_message
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_an_altered_message_decodes_canonically_or_not_at_all(message, data):
    raw = bytearray(message.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    try:
        decoded = type(message).decode(bytes(raw))
    except DecodeError:
        return
    # One value, one encoding: what decodes is what would have been written.
    assert decoded.encode() == bytes(raw)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(tail=st.binary(max_size=400))
@example(tail=b"\xff" * 400)
@example(tail=b"\xff\xff")
def test_arbitrary_bytes_give_a_typed_error_or_a_message(kind, tail):
    for data in (tail, b"fwsa\x01" + bytes([KINDS.index(kind) + 1]) + tail):
        with contextlib.suppress(DecodeError):
            assert kind.decode(data).encode() == data


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_that_announces_much_allocates_little(kind):
    head = b"fwsa\x01" + bytes([KINDS.index(kind) + 1])
    tracemalloc.start()
    try:
        for filler in (b"\xff" * 200, b"h" * 32 + b"\xff" * 60, b"\x0f\xff" * 100):
            with pytest.raises(DecodeError):
                kind.decode(head + filler)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_an_oversized_message_is_refused_unread(kind):
    with pytest.raises(DecodeError, match="at most"):
        kind.decode(bytes(4_000_000))


@pytest.mark.parametrize("positions", [(1, 1), (2, 1), (0, MAXIMUM_MEMBERS)])
def test_positions_that_repeat_are_unordered_or_beyond_any_roster_are_refused(positions):
    for message in (
        ConfirmRequest(alive=positions, dead=()),
        ConfirmRequest(alive=(), dead=positions),
        UnmaskRequest(alive=(), dead=(), signatures=tuple((at, b"s" * 64) for at in positions)),
    ):
        with pytest.raises(DecodeError):
            type(message).decode(message.encode())


@pytest.mark.parametrize("value", [None, "text", 7])
def test_what_is_not_bytes_is_refused(value):
    with pytest.raises(DecodeError, match="must be bytes"):
        Advert.decode(value)


def test_a_name_that_is_not_text_is_refused():
    data = ADVERT.encode().replace(b"north", b"nor\xff\xfe")
    with pytest.raises(DecodeError, match="not UTF-8"):
        Advert.decode(data)


def test_a_round_of_zero_is_refused():
    at = ADVERT.encode().index(b"q" * 32) + 32
    data = bytearray(ADVERT.encode())
    data[at : at + 4] = bytes(4)
    with pytest.raises(DecodeError, match="round or attempt outside"):
        Advert.decode(bytes(data))


def test_a_context_given_as_expected_is_compared_not_trusted():
    assert Advert.decode(ADVERT.encode(), expected=CONTEXT).context is CONTEXT
    other = dataclasses.replace(CONTEXT, nonce=b"o" * 32)
    assert Advert.decode(ADVERT.encode(), expected=other).context == CONTEXT


def test_fields_of_another_size_are_not_written():
    with pytest.raises(ValidationError):
        dataclasses.replace(ADVERT, mask_key=b"short").encode()
    with pytest.raises(ValidationError, match="does not fit"):
        Confirmation(position=70_000, signature=b"s" * 64).encode()


def test_the_signature_covers_all_of_the_body():
    for name in ("name", "encryption_key", "mask_key", "self_mask_commitment"):
        value = "south" if name == "name" else b"z" * 32
        assert dataclasses.replace(ADVERT, **{name: value}).body() != ADVERT.body()
    assert ADVERT.signed(b"r" * 64).body() == ADVERT.body()
    assert ADVERT.signed(b"r" * 64).signature == b"r" * 64


def test_hashes_separate_all_that_they_bind():
    assert advert_set_hash([b"a", b"bc"]) != advert_set_hash([b"ab", b"c"])
    one = share_context(CONTEXT, b"h" * 32, (1, 2))
    assert one != share_context(CONTEXT, b"i" * 32, (1, 2))
    assert one != share_context(CONTEXT, b"h" * 32, (1, 3))
    assert one != share_context(dataclasses.replace(CONTEXT, attempt=3), b"h" * 32, (1, 2))
    assert survivor_statement(one, (1, 2)) != survivor_statement(one, (1,))


def test_shares_do_not_show_in_a_repr():
    for message in MESSAGES:
        for secret in ("a" * 33, "x" * 33, "y" * 33):
            assert secret not in repr(message)


def test_the_outline_of_an_advert_agrees_with_its_decoding():
    keys = ADVERT.encryption_key + ADVERT.mask_key + ADVERT.self_mask_commitment
    assert advert_outline(ADVERT.encode()) == (ADVERT.name, CONTEXT.canonical(), keys)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_what_has_no_outline_does_not_decode_and_the_other_way_round(data):
    raw = bytearray(ADVERT.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, 14))] = data.draw(st.integers(0, 255))
    raw = bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw) - 1]))])
    try:
        decoded = Advert.decode(raw)
    except DecodeError:
        with pytest.raises(DecodeError):
            advert_outline(raw)
    else:
        assert advert_outline(raw)[0] == decoded.name
