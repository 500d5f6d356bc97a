"""The stream between relay and agent: what goes in comes out, and nothing that was not allowed gets room."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from client.agent_pb2 import Opening, Part, Payload, Vector
from client.agent_wire import PIECE_BYTES, PROTOCOL_VERSION, Limits, parts_of, read_body, read_opening
from common.errors import DecodeError
from common.messages import KINDS, TRAIN, Envelope

ROOT = Path(__file__).resolve().parents[2]
NAMES = st.text(min_size=1, max_size=20)
SCALARS = (
    st.text(max_size=50)
    | st.integers(-(2**63), 2**63 - 1)
    | st.booleans()
    | st.floats(allow_nan=False)
    | st.binary(max_size=100)
)
VECTORS = arrays.arrays(
    np.dtype("<f4"), st.integers(0, 50), elements=st.floats(-1, 1, width=32)
) | arrays.arrays(np.dtype("<u4"), st.integers(0, 50))


def read(parts, limits=Limits()):  # noqa: B008
    stream = iter(parts)
    return read_body(read_opening(stream, limits), stream)


def opening(**fields):
    return Part(opening=Opening(**{"version": PROTOCOL_VERSION, "kind": TRAIN, **fields}))


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    header=st.dictionaries(NAMES, SCALARS, max_size=6),
    vectors=st.dictionaries(NAMES, VECTORS, max_size=3),
)
def test_an_envelope_comes_back_as_it_was(kind, header, vectors):
    found = read(parts_of(Envelope(kind=kind, header=header, arrays=vectors)))
    assert (found.kind, dict(found.header)) == (kind, header)
    assert all(type(found.header[name]) is type(value) for name, value in header.items())
    assert found.arrays.keys() == vectors.keys()
    for name, values in vectors.items():
        assert found.arrays[name].dtype == values.dtype
        np.testing.assert_array_equal(found.arrays[name], values)


def test_large_vectors_travel_in_pieces():
    model = np.arange(PIECE_BYTES // 4 * 2 + 3, dtype=np.float32)
    parts = list(parts_of(Envelope(kind=TRAIN, arrays={"model": model})))
    assert [len(part.piece) for part in parts[1:]] == [PIECE_BYTES, PIECE_BYTES, 12]
    np.testing.assert_array_equal(read(parts, Limits.of_requests(model.size)).arrays["model"], model)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([], "does not begin with its opening"),
        ([Part(piece=b"x")], "does not begin with its opening"),
        ([opening(version=2)], "version 2 of the agent's protocol"),
        ([opening(kind="evict")], "no kind that this version knows"),
        ([opening(payloads=[Payload(name="nonce", size=1 << 40)])], "in its header"),
        ([opening(payloads=[Payload(name=f"p{i}", size=1 << 20) for i in range(9)])], "in its header"),
        ([opening(payloads=[Payload(name=f"p{i}", size=1) for i in range(65)])], "more than 64 entries"),
        ([opening(payloads=[Payload(name="a", size=1)] * 2)], "two entries of one name"),
        ([opening(payloads=[Payload(name="", size=1)])], "without a usable name"),
        ([opening(payloads=[Payload(name="n" * 65, size=1)])], "without a usable name"),
        ([opening(vectors=[Vector(name="model", dtype="float32", length=11)])], "11 numbers; at most 10"),
        ([opening(vectors=[Vector(name="model", dtype="float32", length=1 << 62)])], "at most 10"),
        ([opening(vectors=[Vector(name="model", dtype="object", length=1)])], "that no such message has"),
        ([opening(vectors=[Vector(name="model", dtype="uint32", length=1)])], "that no such message has"),
        ([opening(vectors=[Vector(name="other", dtype="float32", length=1)])], "that no such message has"),
        (
            [opening(kind="upload", vectors=[Vector(name="model", dtype="float32", length=1)])],
            "no such message",
        ),
        ([opening(payloads=[Payload(name="nonce", size=4)]), Part(piece=b"abc")], "ends before"),
        ([opening(payloads=[Payload(name="nonce", size=4)]), Part(piece=b"abcde")], "goes over the end"),
        ([opening(payloads=[Payload(name="nonce", size=4)]), Part(piece=b"")], "piece of a stream is empty"),
        ([opening(payloads=[Payload(name="nonce", size=4)]), opening()], "ends before"),
        ([opening(), Part(piece=b"more")], "goes on after"),
    ],
)
def test_what_is_not_allowed_is_refused(parts, said):
    with pytest.raises(DecodeError, match=said):
        read(parts, Limits.of_requests(10))


def test_nothing_is_made_room_for_before_it_is_allowed(monkeypatch):
    """A stream that announces an exabyte costs nothing."""
    monkeypatch.setattr(np, "empty", lambda *_, **__: pytest.fail("Room was made."))
    with pytest.raises(DecodeError):
        read(
            [opening(vectors=[Vector(name="model", dtype="float32", length=1 << 60)])], Limits.of_requests(10)
        )


def test_a_header_that_does_not_fit_is_refused():
    with pytest.raises(DecodeError, match="does not fit"):
        list(parts_of(Envelope(kind=TRAIN, header={"round": 2**70})))


def test_the_committed_stubs_are_current(tmp_path):
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", f"--python_out={tmp_path}"]
    subprocess.run([*command, f"--grpc_python_out={tmp_path}", "client/agent.proto"], check=True, cwd=ROOT)
    for name in ("agent_pb2.py", "agent_pb2_grpc.py"):
        made = (tmp_path / "client" / name).read_text(encoding="utf-8")
        assert (ROOT / "client" / name).read_text(encoding="utf-8") == made, "Run `make proto`."
