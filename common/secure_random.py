"""The secure half of seeding: randomness that privacy rests on, from the operating system's entropy.

Sampling masks, noise and stochastic rounding come from here and from nowhere else. Nothing in this module
reads or writes the state of `random`, numpy or torch, and a generator's own state cannot be saved,
copied or sent: a second copy would repeat the noise that the first one gave.
"""

from __future__ import annotations

import os
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from common.errors import ValidationError
from common.validation import require_float, require_int

KEY_BYTES = 32
# Block-wise work keeps every temporary array in the second-level cache.
_BLOCK = 1 << 14
# Half of the 2n = 4 Gaussians that are summed into one value; Opacus's secure mode uses the same n.
_PAIRS = 2
_LARGEST = 2**62
_ZEROS = bytes(_BLOCK * 8)


class SecureGenerator:
    """An AES-256-CTR keystream, keyed once from the operating system, read as random values.

    Formal guarantees: Under the usual assumption that AES-256 is a pseudorandom permutation, the words
    are indistinguishable from uniform ones to anybody without the key, which never leaves the object.
    `bernoulli` includes each element with probability within 2^-64 of `probability`. A forked process
    that inherits the object gets a fresh key, so parent and child never share a stream.

    Heuristic, not a theorem: each Gaussian is the sum of four Box-Muller Gaussians over the square root of
    four, in float64, which is how Opacus's secure mode answers the floating-point attack of
    Mironov (2012); the argument is Holohan and Braghin, "Secure Random Sampling in Differential Privacy"
    (ESORICS 2021), section 5. `add_gaussian` goes one step further than Opacus: the sum of value and noise
    is formed in float64 and rounded once to float32, which drops the 29 low bits that the attack reads.
    """

    def __init__(self) -> None:
        """Take a key from the operating system."""
        self._test_key = False
        self._start(os.urandom(KEY_BYTES))

    @classmethod
    def for_tests(cls, key: bytes) -> SecureGenerator:
        """Return a generator whose stream repeats for the same `key`; never use it on records.

        Args:
            key: 32 bytes.

        Raises:
            ValidationError: The key has another length.
        """
        if len(key) != KEY_BYTES:
            raise ValidationError(f"A test key has {len(key)} bytes; it must have {KEY_BYTES}.")
        generator = cls()
        generator._test_key = True
        generator._start(key)
        return generator

    def words(self, size: int) -> NDArray[np.uint64]:
        """Return `(size,)` independent uniform 64-bit words."""
        out = np.empty(require_int("size", size, minimum=0, maximum=_LARGEST), dtype=np.uint64)
        self._fill(out)
        return out

    def uniform(self, size: int) -> NDArray[np.float64]:
        """Return `(size,)` float64 values, uniform over the multiples of 2^-53 in `[0, 1)`."""
        return (self.words(size) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def integers(self, size: int, *, high: int) -> NDArray[np.int64]:
        """Return `(size,)` whole numbers, exactly uniform on `[0, high)`.

        Args:
            size: How many.
            high: From 1 to 2^62.
        """
        require_int("high", high, minimum=1, maximum=_LARGEST)
        # Words past the last whole multiple of `high` are drawn again: modulo alone favours small values.
        limit = np.uint64(2**64 - 2**64 % high - 1)
        words = self.words(size)
        while (rejected := words > limit).any():
            words[rejected] = self.words(int(rejected.sum()))
        return (words % np.uint64(high)).astype(np.int64)

    def bernoulli(self, size: int, *, probability: float) -> NDArray[np.bool_]:
        """Return `(size,)` booleans, each true with `probability` independently: a Poisson-sampling mask.

        Args:
            size: How many.
            probability: From 0 to 1.
        """
        require_float("probability", probability, minimum=0.0, maximum=1.0)
        threshold = int(probability * 2.0**64)
        if threshold >= 2**64:
            return np.ones(size, dtype=np.bool_)
        return self.words(size) < np.uint64(threshold)

    def gaussian(self, size: int, *, std: float) -> NDArray[np.float32]:
        """Return `(size,)` float32 values of a normal distribution of mean 0 and standard deviation `std`."""
        out = np.zeros(require_int("size", size, minimum=0, maximum=_LARGEST), dtype=np.float32)
        self.add_gaussian(out, std=std)
        return out

    def add_gaussian(self, values: NDArray[np.float32], *, std: float) -> None:
        """Add noise of standard deviation `std` to `values` in place.

        Each sum is formed in float64 and rounded once to float32.

        Args:
            values: One-dimensional, contiguous float32.
            std: From 0 up; at 0 the values stay as they are.

        Raises:
            ValidationError: `values` is not such an array or `std` is negative or not finite.
        """
        require_float("std", std, minimum=0.0, maximum=1e30)
        if values.dtype != np.float32 or values.ndim != 1 or not values.flags.c_contiguous:
            raise ValidationError(
                f"values is {values.dtype} of shape {values.shape}; "
                "noise is added to contiguous float32 vectors only."
            )
        if std == 0.0:
            return
        scratch = _Scratch()
        for start in range(0, values.size, _BLOCK):
            block = values[start : start + _BLOCK]
            noise = self._summed_gaussians(scratch)[: block.size]
            noise *= std
            noise += block
            block[...] = noise

    def _summed_gaussians(self, scratch: _Scratch) -> NDArray[np.float64]:
        """Return a scratch block of `_BLOCK` standard normal values in float64."""
        half = _BLOCK // 2
        total, radius, angle, wave = scratch.total, scratch.radius, scratch.angle, scratch.wave
        total.fill(0.0)
        for _ in range(2 * _PAIRS):
            self._fill(scratch.words)
            signed = scratch.words.view(np.int64)
            # Box and Muller (1958): radius sqrt(-2 ln u) with u uniform on (0, 1], and a uniform angle. The
            # signed word times 2^-63 is uniform on [-1, 1); its magnitude has 63 bits: the tail ends at 9.3.
            np.multiply(signed[:half], 2.0**-63, out=radius)
            np.abs(radius, out=radius)
            np.maximum(radius, 2.0**-64, out=radius)
            np.log(radius, out=radius)
            radius *= -2.0
            np.sqrt(radius, out=radius)
            np.multiply(signed[half:], np.pi * 2.0**-63, out=angle)
            # The two Gaussians of a pair never meet in one value: their sum would be one Gaussian again.
            np.cos(angle, out=wave)
            wave *= radius
            total[:half] += wave
            np.sin(angle, out=wave)
            wave *= radius
            total[half:] += wave
        total *= (2 * _PAIRS) ** -0.5
        return total

    def _fill(self, out: NDArray[np.uint64]) -> None:
        """Overwrite `out` with keystream."""
        if os.getpid() != self._pid and not self._test_key:
            self._start(os.urandom(KEY_BYTES))
        view = out.view(np.uint8).data
        for start in range(0, len(view), len(_ZEROS)):
            part = view[start : start + len(_ZEROS)]
            self._stream.update_into(_ZEROS[: len(part)], part)

    def _start(self, key: bytes) -> None:
        """Begin the keystream of `key` at its first block, for this process."""
        self._stream: CipherContext = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._pid = os.getpid()

    def __repr__(self) -> str:
        """Show the kind of the generator and nothing of its state."""
        return "SecureGenerator(for tests)" if self._test_key else "SecureGenerator()"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse pickling and copying.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "A SecureGenerator cannot be saved or copied: its noise would repeat. Make a new one."
        )


class _Scratch:
    """The float64 arrays that one block of Gaussians is computed in."""

    def __init__(self) -> None:
        """Allocate once, to be overwritten for every block."""
        self.words = np.empty(_BLOCK, dtype=np.uint64)
        self.radius = np.empty(_BLOCK // 2)
        self.angle = np.empty(_BLOCK // 2)
        self.wave = np.empty(_BLOCK // 2)
        self.total = np.empty(_BLOCK)
