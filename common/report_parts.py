"""Pieces of HTML and the words for numbers that the report's sections share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape


def table(heads: str, rows: Iterable[str]) -> str:
    """Return a table that scrolls by itself where the page is narrow."""
    body = "".join(rows)
    return f"<div class='wide'><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"


def details(summary: str, content: str) -> str:
    """Return content that is folded away."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def score(value: float | None) -> str:
    """Return a score, or a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.4f}"


def whole(value: float | None) -> str:
    """Return a count, or a dash where there is none."""
    return "–" if value is None else f"{int(value):,}"


def count(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def small(value: float) -> str:
    """Return a small probability as people write it."""
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    digits = mantissa.removesuffix(".0")
    power = f"10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
    return power if digits == "1" else f"{digits}·{power}"


def duration(seconds: float) -> str:
    """Return a time as a person says it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
