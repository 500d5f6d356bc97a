"""Envelopes say what they are, and typed reads refuse everything else."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import DecodeError
from common.messages import KINDS, TRAIN, Envelope, refusal_of


def test_unknown_kinds_are_refused():
    with pytest.raises(DecodeError, match="of kind 'trian' is not one of"):
        Envelope(kind="trian")


def test_a_refusal_is_a_code_and_nothing_else():
    reply = refusal_of(TRAIN, "bad-data")
    assert reply.refusal == "bad-data"
    assert dict(reply.header) == {"code": "bad-data"}
    assert not reply.arrays


@pytest.mark.parametrize("header", [{}, {"code": ""}, {"code": 3}])
def test_without_a_code_there_is_no_refusal(header):
    assert Envelope(kind=TRAIN, header=header).refusal is None


def test_typed_reads():
    array = np.arange(3, dtype=np.float32)
    message = Envelope(kind=TRAIN, header={"t": "a", "i": 3, "b": b"x"}, arrays={"v": array})
    assert (message.text("t"), message.integer("i"), message.payload("b")) == ("a", 3, b"x")
    assert message.vector("v", np.float32) is array


@pytest.mark.parametrize(
    ("method", "value"),
    [("text", 3), ("text", None), ("text", b"a"), ("integer", True), ("integer", 1.0), ("payload", "x")],
)
def test_header_entries_of_another_type_are_refused(method, value):
    header = {} if value is None else {"name": value}
    with pytest.raises(DecodeError, match="'name'"):
        getattr(Envelope(kind=TRAIN, header=header), method)("name")


@pytest.mark.parametrize(
    "array", [np.zeros((2, 2), np.float32), np.zeros(2, np.float64), np.zeros(2, np.uint32), np.float32(1)]
)
def test_vectors_of_another_shape_or_type_are_refused(array):
    with pytest.raises(DecodeError, match="float32 vector 'v'"):
        Envelope(kind=TRAIN, arrays={"v": np.asarray(array)}).vector("v", np.float32)


def test_repr_shows_neither_header_nor_arrays():
    message = Envelope(kind=TRAIN, header={"secret": "word"}, arrays={"model": np.ones(1)})
    assert repr(message) == "Envelope(kind='train')"


def test_the_kinds_are_the_five_stages_and_hello():
    assert KINDS == ("hello", "train", "share_keys", "upload", "confirm", "unmask")
