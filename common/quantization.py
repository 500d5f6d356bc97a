"""Real vectors <-> the ring of integers modulo 2^32, with unbiased rounding and no wrap-around.

A field's value is weighted, clipped to `[-bound, bound]`, divided by the field's step and rounded
stochastically. The sum of at most `maximum_sites` such integers cannot leave the signed 32-bit range:
that is checked when the layout is made, so a decoded sum is never wrapped.

Formal guarantees (for values inside the bound, with step `s`):
    *Unbiased*: the expectation of the decoded value is the value, up to `s * 2^-32` (the width of the
    random word) plus one float64 rounding.
    *Error*: one rounding has variance `s^2 f (1 - f)` for the fractional part `f`, at most `s^2 / 4`; the
    weighted mean of n sites has standard deviation at most `s sqrt(n) / (2 W)` and is never off by more
    than `s n / W`, with W the sum of the weights.
    *No wrap*: `maximum_sites * levels <= 2^31 - 1` for every field.
    *Exact counts*: a count field has step 1, no weight, and whole values only; its sum is exact.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from common.errors import ValidationError
from common.validation import require_float, require_int, require_text
from common.wire_format import Writer

RING_BITS = 32
"""Masked vectors live in the integers modulo 2^32."""

LARGEST_SUM = 2 ** (RING_BITS - 1) - 1
"""The largest magnitude that a sum of ring elements may reach without wrapping."""

_LARGEST_COUNT = 2**24
"""Whole numbers up to here are exact in float32, the type that updates are held in."""

_BLOCK = 1 << 15
"""Coordinates per block: the five work buffers of one block stay in a second-level cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldSpec:
    """One named part of the vector, with its own scale.

    Attributes:
        name: The key in `ModelUpdate.fields`.
        size: Number of coordinates.
        bound: Weighted coordinates are clipped to `[-bound, bound]`.
        levels: Integer that `bound` maps to; the step is `bound / levels`.
        weighted: Whether the site's public weight multiplies the field.
        exact: Whether values must be whole numbers of steps inside the bound (counts); others are refused.
    """

    name: str
    size: int
    bound: float
    levels: int
    weighted: bool = True
    exact: bool = False

    def __post_init__(self) -> None:
        """Check every attribute."""
        require_text("field name", self.name)
        require_int(f"{self.name}.size", self.size, minimum=1, maximum=2**30)
        require_float(f"{self.name}.bound", self.bound, minimum=0.0, maximum=1e30, open_minimum=True)
        require_int(f"{self.name}.levels", self.levels, minimum=1, maximum=LARGEST_SUM)
        if self.exact and (self.weighted or self.bound != self.levels or self.levels > _LARGEST_COUNT):
            raise ValidationError(
                f"The count field {self.name} must be unweighted, with a step of 1 and a bound of at most "
                f"{_LARGEST_COUNT}; make it with FieldSpec.count."
            )

    @classmethod
    def real(cls, name: str, *, size: int, bound: float, bits: int, weighted: bool = True) -> FieldSpec:
        """Return a real-valued field of `bits` bits per coordinate, sign included (2 to 32)."""
        require_int(f"{name}.bits", bits, minimum=2, maximum=RING_BITS)
        return cls(name=name, size=size, bound=bound, levels=2 ** (bits - 1) - 1, weighted=weighted)

    @classmethod
    def count(cls, name: str, *, size: int = 1, bound: int) -> FieldSpec:
        """Return a field of whole numbers in `[-bound, bound]` whose sum is exact."""
        return cls(name=name, size=size, bound=bound, levels=bound, weighted=False, exact=True)

    @property
    def step(self) -> float:
        """The value of one ring unit."""
        return self.bound / self.levels


@dataclass(frozen=True, kw_only=True, slots=True)
class RingLayout:
    """The order and scales of the fields in one uint32 vector, for at most `maximum_sites` sites.

    Raises:
        ValidationError: Two fields share a name, or the sum of some field could wrap.
    """

    fields: tuple[FieldSpec, ...]
    maximum_sites: int

    def __post_init__(self) -> None:
        """Check the names and prove that no sum wraps."""
        require_int("maximum_sites", self.maximum_sites, minimum=1, maximum=65_535)
        names = [field.name for field in self.fields]
        if not names or len(set(names)) != len(names):
            raise ValidationError("A ring layout needs at least one field, each with a name of its own.")
        for field in self.fields:
            if field.levels * self.maximum_sites > LARGEST_SUM:
                room = LARGEST_SUM // self.maximum_sites
                raise ValidationError(
                    f"The field {field.name} has {field.levels} levels; the sum over {self.maximum_sites} "
                    f"sites would not fit {RING_BITS} bits. Use at most {room} levels "
                    f"({room.bit_length()} bits), or fewer sites."
                )

    @property
    def length(self) -> int:
        """Number of ring elements in the vector."""
        return sum(field.size for field in self.fields)

    def canonical(self) -> bytes:
        """Return the one encoding of this layout, for hashing."""
        out = Writer().text("fedward ring layout v1").u16(self.maximum_sites).u16(len(self.fields))
        for field in self.fields:
            out.text(field.name).u32(field.size).f64(field.bound).u32(field.levels)
            out.u8(field.weighted).u8(field.exact)
        return out.finish()

    def digest(self) -> bytes:
        """Return the SHA-256 of the canonical encoding (32 bytes)."""
        return hashlib.sha256(self.canonical()).digest()

    def encode(self, fields: Mapping[str, NDArray[np.float32]], *, weight: float) -> NDArray[np.uint32]:
        """Weight, clip and round an update into the ring.

        Args:
            fields: One float vector `(size,)` per field of the layout, no more and no fewer.
            weight: The site's public weight in (0, 1].

        Returns:
            The vector `(length,)` of ring elements; negative numbers in two's complement.

        Raises:
            ValidationError: A field is missing, has another size, is not finite, or is a count that is
                not a whole number inside its bound.
        """
        weight = require_float("weight", weight, minimum=0.0, maximum=1.0, open_minimum=True)
        if set(fields) != {field.name for field in self.fields}:
            raise ValidationError(
                f"The update has the fields {sorted(fields)}; the layout has "
                f"{sorted(field.name for field in self.fields)}."
            )
        out = np.empty(self.length, np.uint32)
        rounder = _Rounder()
        for field, where in self._slices():
            rounder.round_field(field, np.asarray(fields[field.name]), weight, out[where])
        return out

    def decode(self, total: NDArray[np.uint32]) -> dict[str, NDArray[np.float64]]:
        """Return the sums of the fields, in the fields' own units, from the sum in the ring.

        Args:
            total: Sum modulo 2^32 of at most `maximum_sites` encoded vectors, `(length,)`.

        Returns:
            Per field the sum `(size,)` in float64; divide weighted fields by the sum of the weights.
        """
        if total.dtype != np.uint32 or total.shape != (self.length,):
            raise ValidationError(
                f"The sum must be {self.length} uint32 values, not {total.shape} {total.dtype}."
            )
        signed = total.view(np.int32)
        return {
            field.name: np.multiply(signed[where], field.step, dtype=np.float64)
            for field, where in self._slices()
        }

    def mean_standard_deviation(self, name: str, weights: Sequence[float]) -> float:
        """Return the bound `step sqrt(n) / (2 W)` on the rounding error's standard deviation of a mean.

        Args:
            name: The field.
            weights: The survivors' public weights; W is their sum (or n, for an unweighted field).
        """
        field = self._field(name)
        return field.step * math.sqrt(len(weights)) / (2 * self._divisor(field, weights))

    def mean_largest_error(self, name: str, weights: Sequence[float]) -> float:
        """Return the bound `step n / W` that no rounding error of the mean exceeds."""
        field = self._field(name)
        return field.step * len(weights) / self._divisor(field, weights)

    def _divisor(self, field: FieldSpec, weights: Sequence[float]) -> float:
        """The sum of the weights that the field was multiplied with."""
        return math.fsum(weights) if field.weighted else float(len(weights))

    def _field(self, name: str) -> FieldSpec:
        """The field of this name."""
        for field in self.fields:
            if field.name == name:
                return field
        raise ValidationError(f"The layout has no field {name!r}; it has {[f.name for f in self.fields]}.")

    def _slices(self) -> Iterator[tuple[FieldSpec, slice]]:
        """Each field with its place in the vector."""
        start = 0
        for field in self.fields:
            yield field, slice(start, start + field.size)
            start += field.size


class _Rounder:
    """Stochastic rounding in blocks, fed by an AES-256-CTR stream under a fresh key from the system.

    A value is scaled to fixed point with 32 fractional bits, a uniform 32-bit word is added, and the high
    half is kept: floor(v + U), which rounds up with probability equal to the fractional part.
    """

    def __init__(self) -> None:
        self._stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
        self._zeros = np.zeros(_BLOCK, np.uint32)
        self._scaled = np.empty(_BLOCK, np.float64)
        self._fixed = np.empty(_BLOCK, np.int64)
        self._words = np.empty(_BLOCK, np.uint32)
        self._wide = np.zeros(_BLOCK, np.int64)

    def round_field(
        self, field: FieldSpec, values: NDArray[np.float32], weight: float, out: NDArray[np.uint32]
    ) -> None:
        """Round one field's values into its slice of the ring vector."""
        if values.shape != (field.size,) or values.dtype.kind != "f":
            raise ValidationError(
                f"The field {field.name} has shape {values.shape} and type {values.dtype}; it must be "
                f"{field.size} floats."
            )
        scale = (weight if field.weighted else 1.0) * field.levels / field.bound * 2.0**32
        for start in range(0, field.size, _BLOCK):
            block = values[start : start + _BLOCK]
            if not np.isfinite(block).all():
                raise ValidationError(f"The field {field.name} has a value that is not a finite number.")
            if field.exact:
                _check_counts(field, block)
            self._round_block(block, scale, field.levels, out[start : start + _BLOCK])

    def _round_block(
        self, values: NDArray[np.float32], scale: float, levels: int, out: NDArray[np.uint32]
    ) -> None:
        """Round one block; the clip in fixed point makes the bound of `levels` exact."""
        n = len(values)
        scaled, fixed, limit = self._scaled[:n], self._fixed[:n], levels * 2.0**32
        np.multiply(values, scale, out=scaled, dtype=np.float64)
        np.clip(scaled, -limit, limit, out=scaled)
        fixed[:] = scaled
        self._stream.update_into(self._zeros[:n].view(np.uint8).data, self._words[:n].view(np.uint8).data)
        # The words go into the low halves of zeroed 64-bit integers: an addition without type conversion.
        self._wide.view("<u4")[0 : 2 * n : 2] = self._words[:n]
        fixed += self._wide[:n]
        out[:] = fixed.view("<u4")[1::2]


def _check_counts(field: FieldSpec, block: NDArray[np.float32]) -> None:
    """Refuse a count that rounding or clipping would change."""
    if bool((np.abs(block) > field.bound).any()) or bool((block != np.rint(block)).any()):
        raise ValidationError(
            f"The count field {field.name} has a value that is not a whole number from "
            f"{-field.levels} to {field.levels}; raise the field's bound in the layout."
        )
