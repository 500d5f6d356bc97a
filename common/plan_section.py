"""What every table of the plan is made of: fields that check themselves, and a section that reads a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Self

from common.errors import ValidationError
from common.validation import (
    require_bool,
    require_choice,
    require_float,
    require_int,
    require_known_keys,
    require_text,
)


def checked(default: Any, check: Callable[[str, object], Any]) -> Any:
    """Declare a field whose value passes through `check(name, value)`."""
    return field(default=default, metadata={"check": check})


def whole(default: int, minimum: int, maximum: int) -> Any:
    """Declare a whole number of a range."""
    return checked(default, partial(require_int, minimum=minimum, maximum=maximum))


def number(default: float, minimum: float, maximum: float, *, above: bool = False) -> Any:
    """Declare a number of a range; `above` excludes the minimum."""
    return checked(default, partial(require_float, minimum=minimum, maximum=maximum, open_minimum=above))


def choice(default: str, choices: tuple[str, ...]) -> Any:
    """Declare one of a few words."""
    return checked(default, partial(require_choice, choices=choices))


def text(default: str) -> Any:
    """Declare a non-empty text."""
    return checked(default, require_text)


def flag(default: bool) -> Any:
    """Declare a true or false."""
    return checked(default, require_bool)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table of the plan; its fields check themselves when it is made."""

    title: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Check every field that declares a check, naming it `section.field`."""
        for item in dataclasses.fields(self):
            check = item.metadata.get("check")
            if check is not None:
                value = check(f"{self.title}.{item.name}", getattr(self, item.name))
                object.__setattr__(self, item.name, value)

    @classmethod
    def from_table(cls, table: object) -> Self:
        """Make the section from a parsed TOML table; unknown keys are errors."""
        if not isinstance(table, Mapping):
            raise ValidationError(f"[{cls.title}] must be a table, not {table!r}.")
        require_known_keys(f"[{cls.title}]", table, [item.name for item in dataclasses.fields(cls)])
        return cls(**table)
