"""MinHash sketches of texts, by datasketch: how alike two texts are, without keeping either."""

from __future__ import annotations

import zlib

import regex  # type: ignore[import-untyped]
from datasketch import MinHash  # type: ignore[import-untyped]

PERMUTATIONS = 64
"""Values of a sketch; the standard error of the similarity is at most 1 / (2 * sqrt(64)), about 0.06."""

_WORDS_PER_SHINGLE = 4
_TOKEN = regex.compile(
    r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]|[\p{L}\p{M}]+|\p{N}+"
)
# One seed for all sketches, and one set of permutations: sketches are compared with each other.
_EMPTY = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=zlib.crc32)


def shingles(text: str) -> list[bytes]:
    """Return the runs of four words of a text, each once; numbers count, because another value is another note."""
    words = _TOKEN.findall(text.casefold())
    if len(words) <= _WORDS_PER_SHINGLE:
        return ["\x1f".join(words).encode()] if words else []
    runs = zip(*(words[i:] for i in range(_WORDS_PER_SHINGLE)), strict=False)
    return list(dict.fromkeys("\x1f".join(run).encode() for run in runs))


def minhash(pieces: list[bytes]) -> MinHash:
    """Return the sketch of shingles, 64 values of 32 bits."""
    sketch = _EMPTY.copy()
    sketch.update_batch(pieces)
    return sketch
