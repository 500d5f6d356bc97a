"""A site's training notes: read from its folder, and through the stages of the plan and of the site."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from client.deidentification_settings import DeidentificationTable
from client.preparation_settings import PreparationTable
from client.preprocessing_build import prepare_notes
from common.annotations import Counts
from common.errors import DataError
from common.host import schema_of
from common.ingestion import find_split, read_split, require_annotated
from common.plan import Plan
from common.records import Note


def read_training_notes(
    folder: Path,
    plan: Plan,
    preparation: PreparationTable | None = None,
    *,
    deidentification: DeidentificationTable | None = None,
    device: str = "auto",
) -> tuple[Note, ...]:
    """Return the notes of a folder's `train`, prepared.

    Args:
        folder: Holds `train`, a file or a folder.
        plan: Its label schema and `[preparation]` are used.
        preparation: The site's own additions.
        deidentification: How the site de-identifies.
        device: Where a tagger of the de-identification runs.

    Raises:
        DataError: A file or line is not usable, notes are not annotated, or no note is left.
        ValidationError: The site's stages are not allowed under the plan.
    """
    split = find_split(folder, "train")
    if split is None:
        raise DataError(
            "has no split train; add a file or a folder called train, with any extension.", path=folder
        )
    site = preparation or PreparationTable()
    counts: Counts = Counter()
    notes = read_split(
        split, schema_of(plan), split="train", counts=counts, table=site.table, detected=site.detected
    )
    prepared = prepare_notes(notes, site.recipe(plan, deidentification=deidentification, device=device))
    require_annotated(counts, split)
    return prepared
