"""`[preparation]`: the stages that notes go through before tokenisation, as data, with their options checked.

A plan lists them for all sites; a site's own file may add some. What a stage does is at the sites
(`client.preprocessing_build`); both ends know here what may be asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from common.errors import ValidationError
from common.validation import (
    require_bool,
    require_choice,
    require_float,
    require_int,
    require_known_keys,
    require_text,
)

Check = Callable[[str, object], Any]


def require_texts(name: str, value: object) -> tuple[str, ...]:
    """Return a list of non-empty texts."""
    if not isinstance(value, list | tuple):
        raise ValidationError(f"{name} is {value!r}; it must be a list of texts.")
    return tuple(require_text(f"{name}[{i}]", entry) for i, entry in enumerate(value))


def require_names(name: str, value: object) -> tuple[tuple[str, str], ...]:
    """Return a table of text = text as sorted pairs."""
    items = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(items, list | tuple) or not all(isinstance(p, tuple) and len(p) == 2 for p in items):
        raise ValidationError(f"{name} is {value!r}; it must be a table of name = name.")
    return tuple(sorted((require_text(f"{name} key", k), require_text(f"{name}.{k}", v)) for k, v in items))


_SIMILARITY = partial(require_float, minimum=0.5, maximum=1.0)

STAGES: Mapping[str, Mapping[str, Check]] = {
    "unicode": {},
    "line_breaks": {"wrap_width": partial(require_int, minimum=20, maximum=10_000)},
    "whitespace": {},
    "boilerplate": {"phrases": require_texts, "allow_negation": require_bool},
    "sections": {"names": require_names},
    "repeated_parts": {
        "min_words": partial(require_int, minimum=3, maximum=100_000),
        "threshold": _SIMILARITY,
    },
    # How is each site's own: [deidentification] of its site.toml.
    "deidentify": {},
    "near_duplicates": {
        "within": partial(require_choice, choices=("unit", "site")),
        "unit": partial(require_choice, choices=("record", "document", "patient")),
        "threshold": _SIMILARITY,
    },
    "length": {
        "minimum": partial(require_int, minimum=1, maximum=1_000_000),
        "maximum": partial(require_int, minimum=1, maximum=100_000_000),
    },
}
"""The stages that can be named, and the checks of their options."""


@dataclass(frozen=True, kw_only=True)
class StageChoice:
    """One stage as a plan or a site file names it.

    Attributes:
        name: One of `STAGES`.
        options: Its options, as hashable values; what is left out has the stage's default.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def is_across_units(self) -> bool:
        """Whether what it does to a note depends on notes of other privacy units."""
        return dict(self.options).get("within") == "site"

    def to_table(self) -> str | dict[str, Any]:
        """Return what TOML holds: the name alone, or a table of name and options."""
        if not self.options:
            return self.name
        return {"name": self.name} | {key: _plain(value) for key, value in self.options}


def require_stages(name: str, value: object) -> tuple[StageChoice, ...]:
    """Return a list of stages: each a name, or a table of `name` and options.

    Raises:
        ValidationError: A stage or option is unknown, comes twice, or has a value out of range.
    """
    if not isinstance(value, list | tuple):
        raise ValidationError(f"{name} is {value!r}; it must be a list of stages.")
    choices = tuple(_choice(f"{name}[{i}]", entry) for i, entry in enumerate(value))
    names = [choice.name for choice in choices]
    for stage in names:
        if names.count(stage) > 1:
            raise ValidationError(f"{name} lists the stage {stage!r} twice; list it once.")
    return choices


def require_within_units(name: str, choices: Iterable[StageChoice]) -> None:
    """Refuse stages that a private plan cannot have.

    Formal guarantees: After it, what happens to a note before training is a function of the notes of its own
    privacy unit and of public data, so adding or removing one unit changes the contribution of that unit alone,
    which is what the clip and the accountant assume.

    Raises:
        ValidationError: A stage looks across units.
    """
    for choice in choices:
        if choice.is_across_units:
            raise ValidationError(
                f'{name} has the stage {choice.name!r} with within = "site"; under [privacy] every stage must be a '
                "function of one privacy unit and public data, because removing one patient's note would "
                'otherwise change what is trained on of another\'s, which no clip bounds. Use within = "unit".'
            )


def _choice(name: str, entry: object) -> StageChoice:
    """Check one entry."""
    if isinstance(entry, StageChoice):
        return entry
    table: Mapping[str, object] = {"name": entry} if isinstance(entry, str) else entry  # type: ignore[assignment]
    if not isinstance(table, Mapping) or "name" not in table:
        raise ValidationError(
            f"{name} is {entry!r}; it must be a stage's name, or a table with name and options."
        )
    stage = require_choice(f"{name}.name", table["name"], STAGES)
    checks = STAGES[stage]
    given = {key: value for key, value in table.items() if key != "name"}
    require_known_keys(f"the stage {stage}", given, checks)
    options = sorted((key, checks[key](f"{name}.{key}", value)) for key, value in given.items())
    return StageChoice(name=stage, options=tuple(options))


def _plain(value: Any) -> Any:
    """Return an option as TOML holds it."""
    if isinstance(value, tuple):
        return dict(value) if value and isinstance(value[0], tuple) else list(value)
    return value
