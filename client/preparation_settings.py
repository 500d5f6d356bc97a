"""`[preparation]` of a `site.toml`: what a site adds to the plan's preparation, and how its files are laid out.

```toml
[preparation]
stages = ["unicode", "whitespace"]      # after the plan's; those that the plan has as well are the plan's
phrases = ["Electronically signed by"]  # boilerplate of this house
phrases_file = "phrases.txt"            # the same, one a line
format = "auto"                         # or the name of a format, see docs/formats.md
text_column = "note_text"               # of CSV and Parquet, and so on for id, document, patient, spans
split_key = "split.key"                 # secret, mode 0600; made by the first `prepare --split`
split_by = "patient"
```
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from client.deidentification_settings import DeidentificationTable
from client.preprocessing_build import Recipe, recipe_of
from client.preprocessing_parts import all_phrases, read_phrases
from common.ingestion_detection import DataFormat, DetectedFormat, named_format
from common.ingestion_rejects import OnReject
from common.ingestion_tables import TableLayout
from common.plan import Plan, Section
from common.preparation import StageChoice, require_stages, require_texts
from common.validation import require_choice, require_text

_SPLIT_UNITS = ("auto", "patient", "document", "record")


def _field(default: Any, check: Any) -> Any:
    """Declare a field whose value passes through `check(name, value)`."""
    return field(default=default, metadata={"check": check})


def _path(name: str, value: object) -> Path | None:
    """Return a path, or None where the field is left out."""
    return value if value is None or isinstance(value, Path) else Path(require_text(name, value)).expanduser()


@dataclass(frozen=True, kw_only=True)
class PreparationTable(Section):
    """A site's own additions; see the module."""

    title = "preparation"
    stages: tuple[StageChoice, ...] = _field((), require_stages)
    phrases: tuple[str, ...] = _field((), require_texts)
    phrases_file: Path | None = _field(None, _path)  # noqa: RUF009
    format: str = _field("auto", partial(require_choice, choices=["auto", *DataFormat]))
    text_column: str = _field("text", require_text)
    id_column: str = _field("id", require_text)
    document_column: str = _field("document_id", require_text)
    patient_column: str = _field("patient_id", require_text)
    spans_column: str = _field("spans", require_text)
    split_key: Path | None = _field(None, _path)  # noqa: RUF009
    split_by: str = _field("auto", partial(require_choice, choices=_SPLIT_UNITS))

    @property
    def table(self) -> TableLayout:
        """Which named columns hold what."""
        return TableLayout(
            text=self.text_column,
            id=self.id_column,
            document=self.document_column,
            patient=self.patient_column,
            spans=self.spans_column,
        )

    @property
    def detected(self) -> DetectedFormat | None:
        """The format that the file names; None where it is to be found out."""
        return named_format(self.format)

    def anchored(self, folder: Path) -> PreparationTable:
        """Return the table with its paths taken from `folder`."""
        values = {name: getattr(self, name) for name in ("phrases_file", "split_key")}
        paths = {name: folder / value for name, value in values.items() if value is not None}
        return dataclasses.replace(self, **paths)

    def recipe(
        self,
        plan: Plan | None,
        *,
        deidentification: DeidentificationTable | None = None,
        device: str = "auto",
        on_reject: OnReject | None = None,
    ) -> Recipe:
        """Return the stages of the plan and of this table.

        Args:
            plan: The plan, if there is one.
            deidentification: How the site de-identifies.
            device: Where a tagger of the de-identification runs.
            on_reject: Receives empty lines of the file of phrases; without it, the first raises.

        Raises:
            ValidationError: The stages do not fit together, or a private plan does not allow them.
            DataError: The file of phrases cannot be used.
        """
        listed = read_phrases(self.phrases_file, on_reject=on_reject) if self.phrases_file else []
        return recipe_of(
            plan,
            stages=self.stages,
            phrases=all_phrases(self.phrases, listed),
            deidentification=deidentification,
            device=device,
        )
