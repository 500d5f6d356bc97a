"""What of a quality report may leave the site: counts with small cells suppressed, and no text of any note.

Formal meaning
--------------
A cell of 1 to `THRESHOLD` - 1 is withheld, and others with it, in the table's own order, until at least two
are and together they hold at least twice the threshold: else a total known from elsewhere, minus the rest,
would tell the cell. Withheld cells all look alike, and which one hides another does not depend on its size
(the smallest would be known to be at most the next one, which bounds what it hides). So every withheld cell,
given the table and its total, may still have any value from 1 below the threshold. A share is published only
with its cell. No extreme, no percentile and no mention's text is published.

This is *not* differential privacy: it bounds nothing against somebody who knows other tables of the same records, or an
earlier export. Release one export of a data set, not many.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.errors import InputError

THRESHOLD = 10
"""Cells below are withheld, zero excepted."""

NOTICE = (
    f"Cells of 1 to {THRESHOLD - 1} are withheld (null), and others with them so that totals do not tell them. "
    "Suppression is not differential privacy: it gives no bound against somebody who knows other tables of these "
    "records."
)


def suppress(cells: Mapping[str, int], *, threshold: int = THRESHOLD) -> dict[str, int | None]:
    """Return a table's cells, None for those that are withheld; the table's total may be published.

    Args:
        cells: Counts that add up to the published total.
        threshold: Cells from 1 below it are withheld.
    """
    withheld = {name for name, count in cells.items() if 0 < count < threshold}
    others = [name for name, count in cells.items() if count >= threshold]
    while withheld and others and not _is_safe(cells, withheld, threshold):
        withheld.add(others.pop(0))
    if withheld and not _is_safe(cells, withheld, threshold):
        # Too little is left to hide among: nothing of the table is told, zeros included.
        withheld = set(cells)
    return {name: None if name in withheld else count for name, count in cells.items()}


def _is_safe(cells: Mapping[str, int], withheld: set[str], threshold: int) -> bool:
    """Return whether the withheld cells hide each other."""
    return len(withheld) >= 2 and sum(cells[name] for name in withheld) >= 2 * threshold


def export_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what may leave the site of a report's facts.

    Args:
        facts: `QualityReport.facts`.

    Raises:
        InputError: The data is of fewer units than the threshold, so that nothing may leave.
    """
    units = min(part["units"] for part in facts["privacy"])
    if units < THRESHOLD:
        raise InputError(
            f"The data is of fewer than {THRESHOLD} units; any number about it would be about single people, so "
            "nothing can be exported."
        )
    notes = {name: part["notes"] for name, part in facts["splits"].items()}
    encoder = facts["encoder"]
    return {
        "version": 1,
        "kind": "fedward quality export",
        "notice": NOTICE,
        "threshold": THRESHOLD,
        "site": facts["site"],
        "plan_hash": facts["plan_hash"],
        "notes": suppress(notes),
        "words_per_note": suppress(facts["lengths"]),
        "labels": _labels(facts["labels"]),
        "encoder": {
            "max_tokens": encoder["max_tokens"],
            "pieces_per_word": round(encoder["pieces_per_word"], 2),
        },
    }


def _labels(labels: Mapping[str, Any]) -> dict[str, Any]:
    """Return the labels' counts; a type that few units have is withheld however often it occurs."""
    per_type = labels["per_type"]
    # A count of mentions is held against the units behind it: they are people, mentions are not.
    rare = {name for name, row in per_type.items() if 0 < row["units"] < THRESHOLD}
    counted = {
        name: min(row["mentions"], 1) if name in rare else row["mentions"] for name, row in per_type.items()
    }
    shown = suppress(counted)
    shares = [name for name, count in shown.items() if count is not None]
    total = sum(per_type[name]["mentions"] for name in shares)
    return {
        "mentions": shown,
        "share_of_shown": {
            name: round(per_type[name]["mentions"] / total, 4) if total else 0.0 for name in shares
        },
    }
