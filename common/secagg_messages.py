"""The messages of secure aggregation: versioned, bounded, one byte string per value.

Sites are named in adverts only; afterwards a *position* means the place in the advert list, which is sorted
by name and pinned by its hash. Every decoder raises `DecodeError` for whatever a writer would not have
written, and allocates nothing that the message's own bytes do not back.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import pairwise
from typing import Self

from common.errors import DecodeError, ValidationError
from common.key_exchange import KEY_BYTES, SEAL_OVERHEAD, SIGNATURE_BYTES
from common.roster import MAXIMUM_MEMBERS
from common.secagg_parameters import HASH_BYTES, AttemptContext
from common.secret_sharing import SHARE_BYTES
from common.wire_format import Reader, Writer

VERSION = 1
"""Version of every message here; another version does not decode."""

SEALED_BYTES = SEAL_OVERHEAD + 2 * SHARE_BYTES
"""Length of one sealed pair of shares."""

_MAGIC = b"fwsa"
_HEADER_BYTES = 6
_NAME_BYTES = 64
_ADVERT_BYTES = 512
_CONTEXT_BYTES = 4 * HASH_BYTES + 8


class _Kind(IntEnum):
    """The message kinds, one byte on the wire."""

    ADVERT = 1
    ADVERT_LIST = 2
    SHARE_LIST = 3
    SHARE_DELIVERY = 4
    UPLOAD_HEADER = 5
    CONFIRM_REQUEST = 6
    CONFIRMATION = 7
    UNMASK_REQUEST = 8
    UNMASK_RESPONSE = 9


_ADVERT_HEADER = _MAGIC + bytes([VERSION, _Kind.ADVERT])


@dataclass(frozen=True, kw_only=True, slots=True)
class Advert:
    """A site's signed, fresh public keys for one attempt.

    Attributes:
        name: The site's name in the roster.
        context: What the site believes the attempt to be, in full, so that a difference can be named.
        encryption_key: X25519 public key for sealing shares.
        mask_key: X25519 public key for pairwise masks.
        self_mask_commitment: SHA-256 commitment to the self-mask seed.
        signature: Ed25519 over everything before it.
    """

    name: str
    context: AttemptContext
    encryption_key: bytes
    mask_key: bytes
    self_mask_commitment: bytes
    signature: bytes = bytes(SIGNATURE_BYTES)

    def body(self) -> bytes:
        """Return the bytes that are signed."""
        out = _start(_Kind.ADVERT).text(self.name).raw(self.context.canonical(), _CONTEXT_BYTES)
        out.raw(self.encryption_key, KEY_BYTES).raw(self.mask_key, KEY_BYTES)
        return out.raw(self.self_mask_commitment, HASH_BYTES).finish()

    def signed(self, signature: bytes) -> Advert:
        """Return the advert with its signature."""
        return replace(self, signature=signature)

    def encode(self) -> bytes:
        """Return the message."""
        return self.body() + self.signature

    @classmethod
    def decode(cls, data: bytes, *, expected: AttemptContext | None = None) -> Self:
        """Return the message of these bytes, or raise `DecodeError`.

        Args:
            data: The message.
            expected: A context that is taken as it is where the advert has the same bytes.
        """
        reader = _open(data, _Kind.ADVERT, "key advert", _ADVERT_BYTES)
        name = reader.text(_NAME_BYTES)
        context = _parse_context(reader.raw(_CONTEXT_BYTES), expected)
        keys = reader.raw(3 * KEY_BYTES)
        signature = reader.raw(SIGNATURE_BYTES)
        reader.finish()
        return cls(
            name=name,
            context=context,
            encryption_key=keys[:32],
            mask_key=keys[32:64],
            self_mask_commitment=keys[64:],
            signature=signature,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class AdvertList:
    """Server to all: the encoded adverts in order of name, and the thresholds the server works with."""

    cohort_threshold: int
    share_threshold: int
    degree: int
    adverts: tuple[bytes, ...]

    def encode(self) -> bytes:
        """Return the message."""
        out = _start(_Kind.ADVERT_LIST)
        out.u16(self.cohort_threshold).u16(self.share_threshold).u16(self.degree).u16(len(self.adverts))
        for advert in self.adverts:
            out.blob(advert)
        return out.finish()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the message of these bytes, or raise `DecodeError`."""
        maximum = _HEADER_BYTES + 8 + MAXIMUM_MEMBERS * (_ADVERT_BYTES + 2)
        reader = _open(data, _Kind.ADVERT_LIST, "list of adverts", maximum)
        thresholds = [reader.u16() for _ in range(3)]
        adverts = tuple(reader.blob(_ADVERT_BYTES) for _ in range(reader.count(2)))
        reader.finish()
        return cls(
            cohort_threshold=thresholds[0],
            share_threshold=thresholds[1],
            degree=thresholds[2],
            adverts=adverts,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareList:
    """Site to server, and server to site: sealed shares by the position of the receiver or the sender.

    Attributes:
        advert_set: Hash of the advert list that positions refer to.
        sealed: Position and sealed shares, positions strictly increasing.
    """

    advert_set: bytes
    sealed: tuple[tuple[int, bytes], ...] = field(repr=False)

    def encode(self) -> bytes:
        """Return the message."""
        out = _start(_Kind.SHARE_LIST).raw(self.advert_set, HASH_BYTES)
        return _put_items(out, self.sealed, SEALED_BYTES).finish()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the message of these bytes, or raise `DecodeError`."""
        maximum = _HEADER_BYTES + HASH_BYTES + 2 + MAXIMUM_MEMBERS * (2 + SEALED_BYTES)
        reader = _open(data, _Kind.SHARE_LIST, "list of sealed shares", maximum)
        message = cls(advert_set=reader.raw(HASH_BYTES), sealed=_take_items(reader, SEALED_BYTES))
        reader.finish()
        return message


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareDelivery:
    """Server to one site: who shared keys, and the sealed shares of the site's neighbours among them."""

    advert_set: bytes
    share_set: tuple[int, ...]
    sealed: tuple[tuple[int, bytes], ...] = field(repr=False)

    def encode(self) -> bytes:
        """Return the message."""
        out = _put_positions(_start(_Kind.SHARE_DELIVERY).raw(self.advert_set, HASH_BYTES), self.share_set)
        return _put_items(out, self.sealed, SEALED_BYTES).finish()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the message of these bytes, or raise `DecodeError`."""
        maximum = _HEADER_BYTES + HASH_BYTES + 4 + MAXIMUM_MEMBERS * (4 + SEALED_BYTES)
        reader = _open(data, _Kind.SHARE_DELIVERY, "delivery of sealed shares", maximum)
        message = cls(
            advert_set=reader.raw(HASH_BYTES),
            share_set=_take_positions(reader),
            sealed=_take_items(reader, SEALED_BYTES),
        )
        reader.finish()
        return message


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadHeader:
    """Site to server, beside the masked vector: what the vector is, signed.

    Attributes:
        share_context: Hash over the attempt, the advert set and the share set that the masks were made for.
        length: Number of ring elements.
        vector_hash: SHA-256 of the vector as little-endian words.
        signature: Ed25519 over everything before it.
    """

    position: int
    share_context: bytes
    length: int
    vector_hash: bytes
    signature: bytes = bytes(SIGNATURE_BYTES)

    def body(self) -> bytes:
        """Return the bytes that are signed."""
        out = _start(_Kind.UPLOAD_HEADER).u16(self.position).raw(self.share_context, HASH_BYTES)
        return out.u32(self.length).raw(self.vector_hash, HASH_BYTES).finish()

    def signed(self, signature: bytes) -> UploadHeader:
        """Return the header with its signature."""
        return replace(self, signature=signature)

    def encode(self) -> bytes:
        """Return the message."""
        return self.body() + self.signature

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the message of these bytes, or raise `DecodeError`."""
        reader = _open(data, _Kind.UPLOAD_HEADER, "upload header", 256)
        message = cls(
            position=reader.u16(),
            share_context=reader.raw(HASH_BYTES),
            length=reader.u32(),
            vector_hash=reader.raw(HASH_BYTES),
            signature=reader.raw(SIGNATURE_BYTES),
        )
        reader.finish()
        return message


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfirmRequest:
    """Server to all uploaders: who uploaded (alive) and who shared keys but did not (dead)."""

    alive: tuple[int, ...]
    dead: tuple[int, ...]

    def encode(self) -> bytes:
        """Return the message."""
        return _put_positions(_put_positions(_start(_Kind.CONFIRM_REQUEST), self.alive), self.dead).finish()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the message of these bytes, or raise `DecodeError`."""
        reader = _open(data, _Kind.CONFIRM_REQUEST, "confirm request", 16 + 4 * MAXIMUM_MEMBERS)
        message = cls(alive=_take_positions(reader), dead=_take_positions(reader))
        reader.finish()
        return message


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmation:
    """Site to server: its signature over the attempt, the share set and the survivor set."""

    position: int
    signature: bytes

    def encode(self) -> bytes:
        """Return the message."""
        return _start(_Kind.CONFIRMATION).u16(self.position).raw(self.signature, SIGNATURE_BYTES).finish()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the message of these bytes, or raise `DecodeError`."""
        reader = _open(data, _Kind.CONFIRMATION, "confirmation", 128)
        message = cls(position=reader.u16(), signature=reader.raw(SIGNATURE_BYTES))
        reader.finish()
        return message


@dataclass(frozen=True, kw_only=True, slots=True)
class UnmaskRequest:
    """Server to all survivors: the two lists again, and the signatures of those that confirmed them."""

    alive: tuple[int, ...]
    dead: tuple[int, ...]
    signatures: tuple[tuple[int, bytes], ...]

    def encode(self) -> bytes:
        """Return the message."""
        out = _put_positions(_put_positions(_start(_Kind.UNMASK_REQUEST), self.alive), self.dead)
        return _put_items(out, self.signatures, SIGNATURE_BYTES).finish()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the message of these bytes, or raise `DecodeError`."""
        maximum = 16 + MAXIMUM_MEMBERS * (6 + SIGNATURE_BYTES)
        reader = _open(data, _Kind.UNMASK_REQUEST, "unmask request", maximum)
        message = cls(
            alive=_take_positions(reader),
            dead=_take_positions(reader),
            signatures=_take_items(reader, SIGNATURE_BYTES),
        )
        reader.finish()
        return message


@dataclass(frozen=True, kw_only=True, slots=True)
class UnmaskResponse:
    """Site to server: one share per peer, of the self-mask seed if alive and of the mask key if dead."""

    position: int
    share_context: bytes
    self_mask_shares: tuple[tuple[int, bytes], ...] = field(repr=False)
    mask_key_shares: tuple[tuple[int, bytes], ...] = field(repr=False)

    def encode(self) -> bytes:
        """Return the message."""
        out = _start(_Kind.UNMASK_RESPONSE).u16(self.position).raw(self.share_context, HASH_BYTES)
        out = _put_items(out, self.self_mask_shares, SHARE_BYTES)
        return _put_items(out, self.mask_key_shares, SHARE_BYTES).finish()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the message of these bytes, or raise `DecodeError`."""
        maximum = 64 + 2 * MAXIMUM_MEMBERS * (2 + SHARE_BYTES)
        reader = _open(data, _Kind.UNMASK_RESPONSE, "unmask response", maximum)
        message = cls(
            position=reader.u16(),
            share_context=reader.raw(HASH_BYTES),
            self_mask_shares=_take_items(reader, SHARE_BYTES),
            mask_key_shares=_take_items(reader, SHARE_BYTES),
        )
        reader.finish()
        return message


def advert_outline(data: bytes) -> tuple[str, bytes, bytes]:
    """Return an advert's name, context bytes and three keys without decoding the rest.

    A large cohort has many adverts that a site must hold against roster and context, and few that it uses.

    Raises:
        DecodeError: The header, the length or the name is not that of an advert.
    """
    start = _HEADER_BYTES + 2 + int.from_bytes(data[_HEADER_BYTES : _HEADER_BYTES + 2])
    keys = start + _CONTEXT_BYTES
    if data[:_HEADER_BYTES] != _ADVERT_HEADER or len(data) != keys + 3 * KEY_BYTES + SIGNATURE_BYTES:
        raise DecodeError("A list of adverts holds something that is not an advert of this version.")
    try:
        name = data[_HEADER_BYTES + 2 : start].decode()
    except UnicodeDecodeError:
        raise DecodeError("A key advert has a text that is not UTF-8.") from None
    return name, data[start:keys], data[keys:-SIGNATURE_BYTES]


def advert_set_hash(adverts: Sequence[bytes]) -> bytes:
    """Return the hash that pins the adverts and their order, hence every position."""
    digest = hashlib.sha256(Writer().text("fedward advert set v1").u16(len(adverts)).finish())
    for advert in adverts:
        digest.update(len(advert).to_bytes(2) + advert)
    return digest.digest()


def share_context(context: AttemptContext, advert_set: bytes, share_set: Sequence[int]) -> bytes:
    """Return the hash that pairwise masks, uploads and confirmations are bound to."""
    out = Writer().text("fedward share set v1").raw(context.digest(), HASH_BYTES).raw(advert_set, HASH_BYTES)
    return hashlib.sha256(_put_positions(out, tuple(share_set)).finish()).digest()


def survivor_statement(share_context: bytes, alive: Sequence[int]) -> bytes:
    """Return what a confirm signature covers: the attempt, the share set and the survivor set."""
    out = Writer().text("fedward survivors v1").raw(share_context, HASH_BYTES)
    return _put_positions(out, tuple(alive)).finish()


def _start(kind: _Kind) -> Writer:
    """A writer with the header in place."""
    return Writer().raw(_MAGIC, 4).u8(VERSION).u8(kind)


def _open(data: bytes, kind: _Kind, what: str, maximum: int) -> Reader:
    """A reader behind a checked header."""
    reader = Reader(data, what=what, maximum=maximum)
    if reader.raw(4) != _MAGIC:
        raise DecodeError(f"A {what} does not begin as a secure-aggregation message.")
    if (version := reader.u8()) != VERSION:
        raise DecodeError(f"A {what} has version {version}; this program reads version {VERSION}.")
    if (found := reader.u8()) != kind:
        raise DecodeError(f"A message of kind {found} came where a {what} was expected.")
    return reader


def _parse_context(raw: bytes, expected: AttemptContext | None) -> AttemptContext:
    """The context of an advert."""
    if expected is not None and raw == expected.canonical():
        return expected
    try:
        return AttemptContext(
            plan_hash=raw[:32],
            model_hash=raw[32:64],
            parameters_hash=raw[64:96],
            round=int.from_bytes(raw[96:100]),
            attempt=int.from_bytes(raw[100:104]),
            nonce=raw[104:],
        )
    except ValidationError:
        raise DecodeError("A key advert has a round or attempt outside its range.") from None


def _put_positions(out: Writer, positions: Sequence[int]) -> Writer:
    """Append a count and increasing positions."""
    return out.u16s(positions)


def _take_positions(reader: Reader) -> tuple[int, ...]:
    """Read positions, strictly increasing."""
    positions = reader.u16s()
    _check_increasing(positions)
    return positions


def _put_items(out: Writer, items: Sequence[tuple[int, bytes]], size: int) -> Writer:
    """Append a count and pairs of position and fixed-size bytes."""
    out.u16(len(items))
    for position, value in items:
        # struct would pad or cut a value of another length in silence.
        out.u16(position).raw(value, size)
    return out


def _take_items(reader: Reader, size: int) -> tuple[tuple[int, bytes], ...]:
    """Read pairs of position and fixed-size bytes, positions strictly increasing."""
    count = reader.count(2 + size)
    items = tuple(struct.iter_unpack(f">H{size}s", reader.raw(count * (2 + size))))
    _check_increasing([position for position, _ in items])
    return items


def _check_increasing(positions: Sequence[int]) -> None:
    """Refuse positions that repeat or are out of order: one set has one encoding."""
    if any(later <= earlier for earlier, later in pairwise(positions)):
        raise DecodeError("A message lists a site twice or out of order.")
    if positions and positions[-1] >= MAXIMUM_MEMBERS:
        raise DecodeError(f"A message names the position {positions[-1]}, beyond any roster.")
