"""Dates moved by whole days in the form that they were written in, English, Spanish and Chinese.

Two dates that are written in full keep their distance to the day. A date without a day is taken for the middle of
its month and one without a month for the middle of its year, so their distances are kept to about a month or a
year. A date without a year is moved within the years around 2001.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

import regex  # type: ignore[import-untyped]

from client.deidentification_english import MONTHS as _ENGLISH
from client.deidentification_spanish import MONTHS as _SPANISH

_NAMES = {
    name.casefold(): number for names in (_ENGLISH, _SPANISH) for number, name in enumerate(names, start=1)
}
_NAMES |= {"setiembre": 9, "sept": 9}
_SPANISH_NAMES = {*_SPANISH, "setiembre"}
_SHORT = {name[:3].casefold(): number for number, name in enumerate(_ENGLISH, start=1)}
_MONTH = r"(?P<name>" + "|".join(sorted((*_NAMES, *_SHORT), key=len, reverse=True)) + r")\.?"
_DAY = r"(?P<d>\d{1,2})(?P<nth>st|nd|rd|th|º)?"
_YEAR = r"(?P<y>(?:19|20)\d\d)"
_ANY_YEAR = r"(?P<y>(?:19|20)?\d\d)"
_TIME = r"(?:[T ]\d{1,2}:\d\d.*)?"

_FORMS = [
    regex.compile(form, regex.IGNORECASE)
    for form in (
        rf"{_YEAR}([-/.])(?P<m>\d{{1,2}})\2(?P<d>\d{{1,2}}){_TIME}",
        # Which of `a` and `b` is the day depends on the country.
        rf"(?P<a>\d{{1,2}})[ ]?([-/. ])[ ]?(?P<b>\d{{1,2}})[ ]?\2[ ]?{_ANY_YEAR}{_TIME}",
        rf"{_ANY_YEAR}[ ]?年[ ]?(?P<m>\d{{1,2}})[ ]?月(?:[ ]?(?P<d>\d{{1,2}})[ ]?[日号])?{_TIME}",
        r"(?P<m>\d{1,2})[ ]?月[ ]?(?P<d>\d{1,2})[ ]?[日号]",
        rf"{_YEAR}[ ]?年?",
        rf"(?P<m>\d{{1,2}})/{_YEAR}",
        rf"{_DAY}(?:[ ](?:(?:de|of)[ ])?|-){_MONTH}(?:(?:,?[ ]|-)|[ ]del?[ ](?:año[ ])?){_ANY_YEAR}",
        rf"{_DAY}(?:[ ](?:(?:de|of)[ ])?|-){_MONTH}",
        rf"{_MONTH}[ ]{_DAY}(?:,?[ ]{_YEAR})?",
        rf"{_MONTH}(?:,?[ ]|-|[ ](?:of|del?(?:[ ]año)?)[ ]){_YEAR}",
    )
]
_NO_YEAR = 2001
"""Stands for the year of a date without one: no leap year, like most."""


class ImpossibleDate(ValueError):
    """A date of a known form that no calendar has, such as the 31st of February."""


def shift_date(text: str, days: int, *, day_first: bool) -> str | None:
    """Return a date moved by `days`, written as it was; None where its form is not known.

    Args:
        text: The date alone.
        days: Whole days, of either sign.
        day_first: Whether `3/4/2016` is the third of April; a number above 12 is a day in any case.

    Raises:
        ImpossibleDate: The form is known and the date does not exist.
    """
    for form in _FORMS:
        match = form.fullmatch(text)
        if match is not None:
            return _moved(match, days, day_first)
    return None


def _moved(match: Any, days: int, day_first: bool) -> str:
    """Return the matched date, moved and written as it was."""
    parts = {name: value for name, value in match.groupdict().items() if value is not None}
    day, month = _groups(parts, day_first)
    try:
        old = date(
            _year(parts["y"]) if "y" in parts else _NO_YEAR,
            _month(parts[month]) if month in parts else 7,
            int(parts[day]) if day in parts else 15 if month in parts else 1,
        )
        new = old + timedelta(days=days)
    except (ValueError, OverflowError):
        raise ImpossibleDate from None
    padded = _is_padded(parts, day, month)
    values = {
        "y": f"{new.year:04d}"[-len(parts.get("y", "0000")) :],
        day: f"{new.day:02d}" if padded else str(new.day),
        month: _name(parts[month], new.month)
        if month == "name"
        else f"{new.month:02d}"
        if padded
        else str(new.month),
        "nth": "º" if parts.get("nth") == "º" else _ordinal(new.day),
    }
    return _written(match, {name: value for name, value in values.items() if name in parts})


def _groups(parts: Mapping[str, str], day_first: bool) -> tuple[str, str]:
    """Return the names of the groups that hold the day and the month."""
    if "name" in parts:
        return "d", "name"
    if "a" not in parts:
        return "d", "m"
    first, second = ("a", "b") if day_first else ("b", "a")
    return (second, first) if int(parts[second]) > 12 else (first, second)


def _year(text: str) -> int:
    """Return the year of four digits, or of two: 69 to 99 are of the last century."""
    year = int(text)
    return year if len(text) == 4 else year + (1900 if year > 68 else 2000)


def _month(text: str) -> int:
    """Return the number of a month that is written in digits or by its name."""
    if text.isdigit():
        return int(text)
    return _NAMES.get(text.casefold()) or _SHORT[text.casefold()]


def _is_padded(parts: Mapping[str, str], day: str, month: str) -> bool:
    """Return whether numbers below ten are written with a zero, as far as the date tells."""
    numbers = [parts[name] for name in (day, month) if name in parts and parts[name].isdigit()]
    if any(number.startswith("0") for number in numbers):
        return True
    # 10/11/2016 does not tell; with figures alone the zero is the rule, beside a name it is not.
    return all(len(number) == 2 for number in numbers) and len(numbers) == 2


def _name(written: str, month: int) -> str:
    """Return a month's name in the language, length and case of another."""
    folded = written.casefold()
    table = _SPANISH if folded in _SPANISH_NAMES else _ENGLISH
    name = table[month - 1] if folded in _NAMES and folded != "sept" else table[month - 1][:3]
    if written.isupper():
        return name.upper()
    return name.capitalize() if written[0].isupper() else name.lower()


def _ordinal(day: int) -> str:
    """Return the ending of an English ordinal."""
    return "th" if 10 < day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")


def _written(match: Any, values: Mapping[str, str]) -> str:
    """Return the matched text with its groups replaced."""
    text: str = match.group()
    for name in sorted(values, key=match.start, reverse=True):
        text = text[: match.start(name)] + values[name] + text[match.end(name) :]
    return text
