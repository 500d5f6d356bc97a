"""Shamir's secret sharing of 32-byte secrets over the field of integers modulo 2^256 + 297.

A. Shamir, "How to share a secret", CACM 22(11), 1979. The prime is the least above 2^256, so that every
32-byte string is a field element; a share is the value of the polynomial at one point, always 33 bytes.

Formal guarantee: fewer than `threshold` shares are distributed independently of the secret. Shares carry
no check: a wrong share yields a wrong secret, so callers compare what they reconstruct with a commitment.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from functools import lru_cache

from common.errors import AbortError, DecodeError, ValidationError
from common.validation import require_int

PRIME = 2**256 + 297
"""The field's modulus, the least prime above 2^256."""

SECRET_BYTES = 32
"""Length of a secret."""

SHARE_BYTES = 33
"""Length of a share, whatever the number of holders."""

MAXIMUM_SHARES = 65_535
"""Most holders of one secret."""


def split_secret(secret: bytes, *, threshold: int, shares: int) -> list[bytes]:
    """Split a secret so that any `threshold` of the shares give it back, and fewer give nothing.

    Args:
        secret: 32 bytes.
        threshold: From 1 to `shares`.
        shares: Number of holders; the shares are the values at the points 1, -1, 2, -2 and so on.

    Returns:
        `shares` strings of 33 bytes.
    """
    if len(secret) != SECRET_BYTES:
        raise ValidationError(f"A secret has {len(secret)} bytes; it must have {SECRET_BYTES}.")
    require_int("shares", shares, minimum=1, maximum=MAXIMUM_SHARES)
    require_int("threshold", threshold, minimum=1, maximum=shares)
    coefficients = [int.from_bytes(secret), *_random_elements(threshold - 1)]
    even, odd = _in_fours(coefficients[0::2]), _in_fours(coefficients[1::2])
    out = []
    for point in range(1, shares // 2 + 2):
        # p(x) = E(x^2) + x O(x^2), so one evaluation of each half serves both x and -x.
        square = point * point
        first, second = _evaluate(even, square), point * _evaluate(odd, square)
        out += [(first + second) % PRIME, (first - second) % PRIME]
    return [value.to_bytes(SHARE_BYTES) for value in out[:shares]]


def reconstruct_secret(shares: Mapping[int, bytes], *, threshold: int) -> bytes:
    """Return the secret from at least `threshold` shares; further shares are not looked at.

    Args:
        shares: Share by holder index, as `split_secret` numbered them (from 0).
        threshold: The threshold of the split.

    Raises:
        AbortError: There are fewer than `threshold` shares, or they do not lie on one polynomial of a
            32-byte secret.
        DecodeError: A share is not a field element.
    """
    if len(shares) < threshold:
        raise AbortError(f"{len(shares)} shares of a secret are there; {threshold} are needed.")
    chosen = tuple(sorted(shares)[:threshold])
    if chosen[0] < 0 or chosen[-1] >= MAXIMUM_SHARES:
        raise ValidationError(f"A share index must be from 0 to {MAXIMUM_SHARES - 1}.")
    weights = _lagrange_at_zero(chosen)
    total = sum(weight * parse_share(shares[index]) for weight, index in zip(weights, chosen, strict=True))
    secret = total % PRIME
    if secret >> (8 * SECRET_BYTES):
        raise AbortError("The shares of a secret do not fit each other; the attempt cannot be completed.")
    return secret.to_bytes(SECRET_BYTES)


def parse_share(share: bytes) -> int:
    """Return a share as a field element.

    Raises:
        DecodeError: It does not have 33 bytes, or is not below the prime.
    """
    if len(share) != SHARE_BYTES:
        raise DecodeError(f"A share has {len(share)} bytes; it must have {SHARE_BYTES}.")
    value = int.from_bytes(share)
    if value >= PRIME:
        raise DecodeError("A share is not an element of the field.")
    return value


def _random_elements(count: int) -> list[int]:
    """Field elements from the system's randomness; 128 bits beyond the modulus make the bias negligible."""
    size = SHARE_BYTES + 16
    drawn = secrets.token_bytes(size * count)
    return [int.from_bytes(drawn[at : at + size]) % PRIME for at in range(0, size * count, size)]


def _in_fours(coefficients: list[int]) -> list[tuple[int, ...]]:
    """Coefficients from the highest power down, four at a time, with zeros in front."""
    descending = [0] * (-len(coefficients) % 4) + coefficients[::-1]
    return [tuple(descending[at : at + 4]) for at in range(0, len(descending), 4)]


def _evaluate(fours: list[tuple[int, ...]], point: int) -> int:
    """Horner's rule; the point is small, so one reduction for four steps is quicker than one for each."""
    value = 0
    for a, b, c, d in fours:
        value = ((((value * point + a) * point + b) * point + c) * point + d) % PRIME
    return value


def _point(index: int) -> int:
    """The point of the share at an index: 1, -1, 2, -2, ..."""
    return -(index // 2 + 1) if index % 2 else index // 2 + 1


@lru_cache(maxsize=256)
def _lagrange_at_zero(indices: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange weights at zero: prod_j x_j / (x_i prod_{j != i} (x_j - x_i))."""
    points = [_point(index) for index in indices]
    numerator = 1
    for point in points:
        numerator = numerator * point % PRIME
    denominators = []
    for point in points:
        product = point
        for other in points:
            if other != point:
                product *= other - point
        denominators.append(product % PRIME)
    return tuple(numerator * inverse % PRIME for inverse in _invert_all(denominators))


def _invert_all(values: list[int]) -> list[int]:
    """Invert many field elements with one exponentiation (Montgomery's trick)."""
    prefixes, running = [], 1
    for value in values:
        prefixes.append(running)
        running = running * value % PRIME
    inverse = pow(running, -1, PRIME)
    out = [0] * len(values)
    for index in range(len(values) - 1, -1, -1):
        out[index] = inverse * prefixes[index] % PRIME
        inverse = inverse * values[index] % PRIME
    return out
