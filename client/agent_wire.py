"""Envelopes as a stream of parts between relay and agent: an opening that announces everything, then pieces.

Whoever reads holds the announcement against what it allows before it makes room for anything, so that a
stream cannot take more memory than the plan's own model does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.agent_pb2 import Opening, Part, Payload, Scalar, Vector
from common.errors import DecodeError
from common.messages import KINDS, TRAIN, Envelope

PROTOCOL_VERSION = 1

PIECE_BYTES = 1 << 20
"""The most bytes of one piece."""

PART_BYTES = PIECE_BYTES + (1 << 16)
"""The most bytes of one part; gRPC refuses longer ones."""

_PAYLOAD_BYTES = 8 << 20
_ENTRIES = 64
_NAME_CHARACTERS = 64
_DTYPES = ("float32", "float64", "uint32", "int64")
_UNBOUNDED = 1 << 40


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the reader of a stream allows.

    Attributes:
        vectors: The arrays of each kind of message: the dtype that one may have and its greatest length, by
            name. None allows every name and dtype, as a relay does that only hands on what its agent says.
    """

    vectors: Mapping[str, Mapping[str, tuple[str, int]]] | None = field(default=None)

    @classmethod
    def of_requests(cls, parameters: int) -> Limits:
        """Return what a server may send to a site whose model has so many parameters: that model, no more."""
        return cls(vectors={TRAIN: {"model": ("float32", parameters)}})

    def check(self, kind: str, vector: Vector) -> None:
        """Raise unless the vector may be part of such a message.

        Raises:
            DecodeError: It may not.
        """
        allowed: tuple[str, int] | None = (vector.dtype, _UNBOUNDED)
        if self.vectors is not None:
            allowed = self.vectors.get(kind, {}).get(vector.name)
        if allowed is None or vector.dtype not in _DTYPES or vector.dtype != allowed[0]:
            raise DecodeError(f"A {kind} message brings an array that no such message has.")
        if vector.length > allowed[1]:
            raise DecodeError(
                f"A {kind} message brings {vector.length} numbers; at most {allowed[1]} are read."
            )


def parts_of(envelope: Envelope) -> Iterator[Part]:
    """Yield an envelope as a stream of parts.

    Raises:
        DecodeError: A scalar of the header does not fit the protocol.
    """
    payloads = {name: value for name, value in envelope.header.items() if isinstance(value, bytes)}
    scalars = {name: _scalar(name, value) for name, value in envelope.header.items() if name not in payloads}
    opening = Opening(
        version=PROTOCOL_VERSION,
        kind=envelope.kind,
        payloads=[Payload(name=name, size=len(value)) for name, value in payloads.items()],
        vectors=[
            Vector(name=name, dtype=values.dtype.name, length=values.shape[0])
            for name, values in envelope.arrays.items()
        ],
    )
    for name, value in scalars.items():
        opening.scalars[name].CopyFrom(value)
    yield Part(opening=opening)
    for payload in payloads.values():
        yield from _pieces(memoryview(payload))
    for values in envelope.arrays.values():
        yield from _pieces(_bytes_of(values))


def read_opening(parts: Iterator[Part], limits: Limits) -> Opening:
    """Return the announcement of a stream, if everything in it is allowed.

    Args:
        parts: The stream; its first part is taken.
        limits: What is allowed.

    Raises:
        DecodeError: The stream is of another version, or announces what is not allowed.
    """
    part = next(parts, None)
    if part is None or part.WhichOneof("content") != "opening":
        raise DecodeError("A stream does not begin with its opening.")
    opening = part.opening
    if opening.version != PROTOCOL_VERSION:
        raise DecodeError(
            f"A stream speaks version {opening.version} of the agent's protocol and this side version "
            f"{PROTOCOL_VERSION}; install the same fedward at the site and at the server."
        )
    if opening.kind not in KINDS:
        raise DecodeError("A stream brings a message of no kind that this version knows.")
    _check_names(opening)
    if sum(payload.size for payload in opening.payloads) > _PAYLOAD_BYTES:
        raise DecodeError(f"A {opening.kind} message brings more than {_PAYLOAD_BYTES} bytes in its header.")
    for vector in opening.vectors:
        limits.check(opening.kind, vector)
    return opening


def read_body(opening: Opening, parts: Iterator[Part]) -> Envelope:
    """Return the envelope whose opening was read.

    Raises:
        DecodeError: The pieces are not what the opening announced.
    """
    header: dict[str, Any] = {name: _plain(name, scalar) for name, scalar in opening.scalars.items()}
    for payload in opening.payloads:
        buffer = bytearray(payload.size)
        _fill(memoryview(buffer), parts)
        header[payload.name] = bytes(buffer)
    arrays: dict[str, NDArray[Any]] = {}
    for vector in opening.vectors:
        values = np.empty(vector.length, dtype=np.dtype(vector.dtype).newbyteorder("<"))
        _fill(_bytes_of(values), parts)
        arrays[vector.name] = values.astype(vector.dtype, copy=False)
    if next(parts, None) is not None:
        raise DecodeError("A stream goes on after what its opening announced.")
    return Envelope(kind=opening.kind, header=header, arrays=arrays)


def _check_names(opening: Opening) -> None:
    """Raise unless the names are few, short and all different."""
    names = [*opening.scalars, *(payload.name for payload in opening.payloads)]
    arrays = [vector.name for vector in opening.vectors]
    if len(names) > _ENTRIES or len(arrays) > _ENTRIES:
        raise DecodeError(f"A {opening.kind} message has more than {_ENTRIES} entries.")
    if len(set(names)) < len(names) or len(set(arrays)) < len(arrays):
        raise DecodeError(f"A {opening.kind} message has two entries of one name.")
    if any(not 0 < len(name) <= _NAME_CHARACTERS for name in (*names, *arrays)):
        raise DecodeError(f"A {opening.kind} message has an entry without a usable name.")


def _scalar(name: str, value: object) -> Scalar:
    """Return a header value in the protocol's form."""
    try:
        if isinstance(value, bool):
            return Scalar(flag=value)
        if isinstance(value, int):
            return Scalar(integer=value)
        if isinstance(value, float):
            return Scalar(real=value)
        if isinstance(value, str):
            return Scalar(text=value)
    except ValueError:
        pass
    raise DecodeError(f"The header entry {name!r} does not fit the agent's protocol.")


def _plain(name: str, scalar: Scalar) -> str | int | float | bool:
    """Return a header value as Python's own."""
    which = scalar.WhichOneof("value")
    if which is None:
        raise DecodeError(f"The header entry {name!r} has no value.")
    value: str | int | float | bool = getattr(scalar, which)
    return value


def _bytes_of(values: NDArray[Any]) -> memoryview:
    """Return an array's bytes, little-endian, without a copy on a little-endian machine."""
    if values.ndim != 1 or values.dtype.name not in _DTYPES:
        raise DecodeError("An array is not a vector of a type that the agent's protocol has.")
    if not values.shape[0]:
        # An empty memoryview cannot be cast.
        return memoryview(b"")
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    view: Any = little.view(np.uint8)
    return memoryview(view)


def _pieces(content: memoryview) -> Iterator[Part]:
    """Yield bytes in pieces."""
    for start in range(0, len(content), PIECE_BYTES):
        yield Part(piece=bytes(content[start : start + PIECE_BYTES]))


def _fill(room: memoryview, parts: Iterator[Part]) -> None:
    """Read pieces until there is no room left; a piece does not go over the end."""
    at = 0
    while at < len(room):
        part = next(parts, None)
        if part is None or part.WhichOneof("content") != "piece":
            raise DecodeError("A stream ends before what its opening announced.")
        end = at + len(part.piece)
        if not at < end <= len(room):
            raise DecodeError("A piece of a stream is empty, or goes over the end of what was announced.")
        room[at:end] = part.piece
        at = end
