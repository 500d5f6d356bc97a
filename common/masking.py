"""Masks: AES-256-CTR keystreams, added to or subtracted from a uint32 vector in place.

A mask is the keystream of a single-use key, from counter zero, read as little-endian 32-bit words (NIST SP
800-38A, counter mode). It is produced and folded in blocks that stay in the second-level cache, all keys of
a batch on one block before the next, so memory is flat whatever the vector's length or number of masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from common.errors import ValidationError
from common.validation import require_int

_BLOCK = 3 << 14
"""Words per block (192 KiB): keystream and accumulator of one block fit a second-level cache of 512 KiB."""

_BATCH = 64
"""Keys whose cipher states are held at a time."""

_WORDS_PER_COUNTER = 4
"""One counter step of AES makes 16 bytes."""


def apply_masks(
    vector: NDArray[np.uint32],
    *,
    add: Sequence[bytes] = (),
    subtract: Sequence[bytes] = (),
    threads: int = 1,
) -> None:
    """Add and subtract the masks of many single-use keys, in place, modulo 2^32.

    Args:
        vector: Contiguous, writable, `(length,)`.
        add: 32-byte keys whose masks are added.
        subtract: 32-byte keys whose masks are subtracted.
        threads: Parts of the vector worked on at once (the cipher and numpy release the interpreter lock).
    """
    if vector.dtype != np.uint32 or vector.ndim != 1 or not vector.flags.c_contiguous:
        raise ValidationError("Masks are applied to a contiguous one-dimensional uint32 vector.")
    require_int("threads", threads, minimum=1, maximum=64)
    for key in (*add, *subtract):
        if len(key) != 32:
            raise ValidationError(f"A mask key has {len(key)} bytes; it must have 32.")
    signed = [(key, np.add) for key in add] + [(key, np.subtract) for key in subtract]
    share = max(-(-len(vector) // threads), 1)
    share = -(-share // _WORDS_PER_COUNTER) * _WORDS_PER_COUNTER
    starts = range(0, len(vector), share)
    if len(starts) <= 1:
        _mask_part(vector, signed, 0)
        return
    with ThreadPoolExecutor(threads) as pool:
        parts = [pool.submit(_mask_part, vector[at : at + share], signed, at) for at in starts]
        for part in parts:
            part.result()


def keystream(key: bytes, length: int, *, counter: bytes = bytes(16)) -> NDArray[np.uint32]:
    """Return the first `length` words of a key's mask, `(length,)`; for tests and short vectors.

    Args:
        key: 32 bytes.
        length: Number of 32-bit words.
        counter: The initial 16-byte counter block; zero for masks.
    """
    out = np.empty(length, "<u4")
    _stream(key, counter).update_into(bytes(4 * length), out.view(np.uint8).data)
    return out.astype(np.uint32, copy=False)


def _mask_part(vector: NDArray[np.uint32], signed: Sequence[tuple[bytes, np.ufunc]], start: int) -> None:
    """Fold every mask's words from `start` on into one part of the vector."""
    counter = (start // _WORDS_PER_COUNTER).to_bytes(16)
    zeros, words = _aligned(_BLOCK), _aligned(_BLOCK)
    for first in range(0, len(signed), _BATCH):
        batch = [(_stream(key, counter), fold) for key, fold in signed[first : first + _BATCH]]
        for at in range(0, len(vector), _BLOCK):
            block = vector[at : at + _BLOCK]
            mask = words[: len(block)]
            source, target = zeros[: len(block)].view(np.uint8).data, mask.view(np.uint8).data
            for stream, fold in batch:
                stream.update_into(source, target)
                fold(block, mask, out=block)


def _stream(key: bytes, counter: bytes) -> CipherContext:
    """A keystream generator from one counter block on."""
    return Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor()


def _aligned(words: int) -> NDArray[np.uint32]:
    """Zeroed words on a cache-line boundary: unaligned vector stores cost a tenth of the throughput."""
    raw = np.zeros(4 * words + 64, np.uint8)
    skip = -raw.ctypes.data % 64
    return raw[skip : skip + 4 * words].view("<u4")
