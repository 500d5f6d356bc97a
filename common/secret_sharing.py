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
        shares: Number of holders; the share at index i is the value at the point i + 1.

    Returns:
        `shares` strings of 33 bytes.
    """
    if len(secret) != SECRET_BYTES:
        raise ValidationError(f"A secret has {len(secret)} bytes; it must have {SECRET_BYTES}.")
    require_int("shares", shares, minimum=1, maximum=MAXIMUM_SHARES)
    require_int("threshold", threshold, minimum=1, maximum=shares)
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    coefficients.append(int.from_bytes(secret))
    return [_evaluate(coefficients, point).to_bytes(SHARE_BYTES) for point in range(1, shares + 1)]


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


def _evaluate(coefficients: list[int], point: int) -> int:
    """Horner's rule, highest power first; reducing every eighth step is quicker than at every one."""
    value = 0
    for index, coefficient in enumerate(coefficients):
        value = value * point + coefficient
        if index % 8 == 7:
            value %= PRIME
    return value % PRIME


@lru_cache(maxsize=256)
def _lagrange_at_zero(indices: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange weights at zero for the points index + 1: prod_j x_j / (x_i prod_{j != i} (x_j - x_i))."""
    points = [index + 1 for index in indices]
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
