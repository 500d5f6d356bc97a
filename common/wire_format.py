"""Canonical bytes: fixed-width big-endian numbers and length-prefixed fields, one encoding per value.

What is signed or hashed must have exactly one encoding, so a reader takes what a writer would have
written and nothing else: no optional parts, no trailing bytes, no size that the bytes do not back.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from common.errors import DecodeError, ValidationError


class Writer:
    """Collects fields into bytes; every method returns the writer, so that calls chain."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._parts: list[bytes] = []

    def u8(self, value: int) -> Writer:
        """Append one byte."""
        return self._pack(">B", value)

    def u16(self, value: int) -> Writer:
        """Append two bytes, big-endian."""
        return self._pack(">H", value)

    def u32(self, value: int) -> Writer:
        """Append four bytes, big-endian."""
        return self._pack(">I", value)

    def u16s(self, values: Sequence[int]) -> Writer:
        """Append a two-byte count and two bytes for each value."""
        return self.u16(len(values))._pack(f">{len(values)}H", *values)

    def f64(self, value: float) -> Writer:
        """Append an IEEE 754 double, big-endian."""
        return self._pack(">d", value)

    def raw(self, value: bytes, size: int) -> Writer:
        """Append exactly `size` bytes without a length."""
        if len(value) != size:
            raise ValidationError(f"A field of {len(value)} bytes was given where {size} bytes are written.")
        self._parts.append(bytes(value))
        return self

    def blob(self, value: bytes) -> Writer:
        """Append a two-byte length and the bytes."""
        return self.u16(len(value)).raw(value, len(value))

    def text(self, value: str) -> Writer:
        """Append a length-prefixed UTF-8 text."""
        return self.blob(value.encode())

    def finish(self) -> bytes:
        """Return everything appended so far."""
        return b"".join(self._parts)

    def _pack(self, layout: str, *values: float) -> Writer:
        """Append packed numbers."""
        try:
            self._parts.append(struct.pack(layout, *values))
        except struct.error as error:
            raise ValidationError(f"A number does not fit its field ({error}).") from None
        return self


class Reader:
    """Reads what a `Writer` wrote; every deviation raises `DecodeError`.

    Args:
        data: The whole message.
        what: The name of the message, for the error's sentence.
        maximum: The most bytes that a message of this kind may have.
    """

    def __init__(self, data: bytes, *, what: str, maximum: int) -> None:
        """Check the message's size."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise DecodeError(f"A {what} must be bytes, not {type(data).__name__}.")
        self._data = memoryview(data).cast("B")
        self._at = 0
        self._what = what
        if len(self._data) > maximum:
            raise DecodeError(f"A {what} has {len(self._data)} bytes; at most {maximum} are read.")

    def u8(self) -> int:
        """Read one byte."""
        return self.raw(1)[0]

    def u16(self) -> int:
        """Read two bytes, big-endian."""
        return int.from_bytes(self.raw(2))

    def u32(self) -> int:
        """Read four bytes, big-endian."""
        return int.from_bytes(self.raw(4))

    def u16s(self) -> tuple[int, ...]:
        """Read a two-byte count and as many two-byte numbers."""
        count = self.count(2)
        return struct.unpack(f">{count}H", self.raw(2 * count))

    def raw(self, size: int) -> bytes:
        """Read exactly `size` bytes; nothing is allocated unless they are there."""
        if size > len(self._data) - self._at:
            raise DecodeError(f"A {self._what} ends before its last field.")
        self._at += size
        return bytes(self._data[self._at - size : self._at])

    def blob(self, maximum: int) -> bytes:
        """Read a length-prefixed field of at most `maximum` bytes."""
        size = self.u16()
        if size > maximum:
            raise DecodeError(f"A {self._what} has a field of {size} bytes; at most {maximum} are allowed.")
        return self.raw(size)

    def text(self, maximum: int) -> str:
        """Read a length-prefixed UTF-8 text of at most `maximum` bytes."""
        try:
            return self.blob(maximum).decode()
        except UnicodeDecodeError:
            raise DecodeError(f"A {self._what} has a text that is not UTF-8.") from None

    def count(self, item_bytes: int) -> int:
        """Read a two-byte count and check that this many items of `item_bytes` or more can follow."""
        count = self.u16()
        if count * item_bytes > len(self._data) - self._at:
            raise DecodeError(f"A {self._what} announces {count} items that its bytes do not hold.")
        return count

    def finish(self) -> None:
        """Check that nothing is left."""
        if self._at != len(self._data):
            raise DecodeError(f"A {self._what} has {len(self._data) - self._at} bytes after its last field.")
