"""Checks of values at construction: each returns the value or raises one clear sentence."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable

from common.errors import ValidationError


def require_int(name: str, value: object, *, minimum: int, maximum: int) -> int:
    """Return `value` if it is a whole number in `[minimum, maximum]`.

    Raises:
        ValidationError: It is not; the sentence names the field, the value and the range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        raise ValidationError(f"{name} is {value!r}; it must be a whole number from {minimum} to {maximum}.")
    return value


def require_float(
    name: str, value: object, *, minimum: float, maximum: float, open_minimum: bool = False
) -> float:
    """Return `value` as a float if it lies in `[minimum, maximum]` (or `(minimum, maximum]`).

    Raises:
        ValidationError: It is not a finite number of that range.
    """
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if good:
        number = float(value)  # type: ignore[arg-type]
        above = number > minimum if open_minimum else number >= minimum
        if above and number <= maximum:
            return number
    low = f"above {minimum:g}" if open_minimum else f"from {minimum:g}"
    raise ValidationError(f"{name} is {value!r}; it must be a number {low} up to {maximum:g}.")


def require_bool(name: str, value: object) -> bool:
    """Return `value` if it is true or false."""
    if not isinstance(value, bool):
        raise ValidationError(f"{name} is {value!r}; it must be true or false.")
    return value


def require_text(name: str, value: object) -> str:
    """Return `value` if it is a non-empty string."""
    if not isinstance(value, str) or not value.strip():
        raise ValidationError(f"{name} is {value!r}; it must be a non-empty text.")
    return value


def require_choice(name: str, value: object, choices: Collection[str]) -> str:
    """Return `value` if it is one of `choices`; the error suggests the nearest one."""
    if not isinstance(value, str) or value not in choices:
        hint = nearest(str(value), choices)
        raise ValidationError(
            f"{name} is {value!r}; it must be one of {', '.join(sorted(choices))}."
            + (f" Did you mean {hint!r}?" if hint else "")
        )
    return value


def require_known_keys(where: str, keys: Iterable[str], known: Collection[str]) -> None:
    """Raise for the first key that is not among `known`, suggesting the nearest known key."""
    for key in keys:
        if key not in known:
            hint = nearest(key, known)
            raise ValidationError(
                f"{where} has an unknown key {key!r}"
                + (f"; did you mean {hint!r}?" if hint else f"; it knows {', '.join(sorted(known))}.")
            )


def nearest(word: str, choices: Collection[str]) -> str | None:
    """Return the choice that looks most like `word`, or None."""
    found = difflib.get_close_matches(word, sorted(choices), n=1, cutoff=0.5)
    return found[0] if found else None
