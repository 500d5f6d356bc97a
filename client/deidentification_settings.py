"""`[deidentification]` of a `site.toml`: how a site de-identifies its notes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from client.site_tables import RequiredSection, optional, path_or_none, texts
from common.errors import ValidationError
from common.validation import require_choice, require_float


def _some_texts(name: str, value: object) -> tuple[str, ...]:
    """Return a list of at least one text as a tuple."""
    found = texts(name, value)
    if not found:
        raise ValidationError(f"{name} is empty; give at least one.")
    return found


def _text_table(name: str, value: object) -> tuple[tuple[str, str], ...]:
    """Return a table of texts as pairs; a value may be empty."""
    pairs = tuple(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, tuple) or not all(isinstance(text, str) for pair in pairs for text in pair):
        raise ValidationError(f"{name} is {value!r}; it must be a table of texts.")
    return pairs


@dataclass(frozen=True, kw_only=True)
class DeidentificationTable(RequiredSection):
    """How a site de-identifies its notes; see `docs/deidentification.md`.

    `staff`, `wards` and `allowed` are files with one term a line, `tagger` is the folder of a trained model and
    `tagger_map` sends its labels to PHI types, "" to leave one out. `keep` lists PHI types that stay in the text.
    """

    title = "deidentification"
    mode: str = optional("mask", partial(require_choice, choices=("mask", "tag", "surrogate")))
    languages: tuple[str, ...] = optional(("en",), _some_texts)
    staff: Path | None = optional(None, path_or_none)  # noqa: RUF009
    wards: Path | None = optional(None, path_or_none)  # noqa: RUF009
    allowed: Path | None = optional(None, path_or_none)  # noqa: RUF009
    mrn_patterns: tuple[str, ...] = optional((), texts)
    secret: Path | None = optional(None, path_or_none)  # noqa: RUF009
    tagger: Path | None = optional(None, path_or_none)  # noqa: RUF009
    tagger_map: tuple[tuple[str, str], ...] = optional((), _text_table)
    keep: tuple[str, ...] = optional((), texts)
    threshold: float = optional(0.4, partial(require_float, minimum=0.0, maximum=1.0))
    date_order: str = optional("auto", partial(require_choice, choices=("auto", "dmy", "mdy")))
