"""`fedward-site deidentify-check`: how well PHI is found in a corpus that has gold PHI."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from client.deidentification_check import check
from client.deidentification_settings import DeidentificationTable
from client.deidentification_setup import build_finder
from client.settings import read_settings
from common.errors import InputError
from common.files import write_private
from common.host import schema_of
from common.ingestion import find_split, read_split
from common.plan import read_plan
from common.records import Note

PATTERNS, TAGGER, BOTH = "patterns", "tagger", "both"


def run_check(
    *,
    data: Path,
    plan: Path,
    split: str,
    site: Path | None,
    tagger: Path | None,
    languages: tuple[str, ...],
    json_file: Path,
    console: Console,
) -> None:
    """Hold patterns alone, a tagger alone and both against a corpus's gold PHI; print and write the scores.

    Args:
        data: Folder with the split.
        plan: Declares the PHI types of the gold labels.
        split: `train`, `devel` or `test`.
        site: A site.toml whose `[deidentification]` is checked; None checks the patterns without lists.
        tagger: Folder of a trained model, in place of the one that the site file names.
        languages: In place of those of the site file; empty leaves them.
        json_file: Where the scores go, mode 0600: they describe the site's records.
        console: Where they are shown.

    Raises:
        InputError: A file cannot be used, or the split is not there.
    """
    if not json_file.absolute().parent.is_dir():
        raise InputError(f"{json_file.absolute().parent} is not a folder; make it first.")
    table, device = _table(site, tagger, languages)
    notes = _notes(data, plan, split)
    arms = [PATTERNS] if table.tagger is None else [PATTERNS, TAGGER, BOTH]
    result: dict[str, Any] = {"split": split, "languages": list(table.languages), "arms": {}}
    with Progress(console=console, transient=True) as progress:
        for arm in arms:
            finder = build_finder(table, device=device, patterns=arm != TAGGER, tagger=arm != PATTERNS)
            task = progress.add_task(arm, total=len(notes))
            begin = time.process_time()
            scores = check(notes, finder.find, on_note=lambda task=task: progress.advance(task)).to_dict()  # type: ignore[misc]
            seconds = max(time.process_time() - begin, 1e-9)
            result["arms"][arm] = {**scores, "cpu_seconds": seconds, "notes_per_second": len(notes) / seconds}
    write_private(json_file, (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode())
    for arm in arms:
        console.print(_scores(arm, result["arms"][arm]))
    console.print(f"The numbers are in {json_file}.", soft_wrap=True)


def _table(
    site: Path | None, tagger: Path | None, languages: tuple[str, ...]
) -> tuple[DeidentificationTable, str]:
    """Return what is checked, and the device."""
    table, device = DeidentificationTable(), "auto"
    if site is not None:
        settings = read_settings(site)
        if settings.deidentification is None:
            raise InputError(f"{settings.path}: [deidentification] is missing, so there is nothing to check.")
        table, device = settings.deidentification, settings.site.device
    if tagger is not None:
        table = replace(table, tagger=tagger, tagger_map=())
    return (replace(table, languages=languages) if languages else table), device


def _notes(data: Path, plan: Path, split: str) -> list[Note]:
    """Read the split with the plan's PHI types."""
    path = find_split(data, split)
    if path is None:
        raise InputError(f"{data} has no split {split}; it must hold a file or folder of that name.")
    notes = list(read_split(path, schema_of(read_plan(plan)), split=split, counts=Counter()))
    if not any(note.spans for note in notes):
        raise InputError(f"{path} has no gold PHI; recall and precision need a corpus that has.")
    return notes


def _scores(arm: str, scores: dict[str, Any]) -> Table:
    """Return one arm's scores as a table."""
    rows = Table(
        "type",
        *(f"strict {name}" for name in ("P", "R", "F1")),
        "characters found",
        "character P",
        "gold",
        "per 1,000 tokens",
        title=f"{arm}: {scores['notes']} notes, {scores['notes_per_second']:.0f} a CPU second",
    )
    frequency = scores["per_thousand_tokens"]
    for kind, one in [("all", scores), *scores["per_type"].items()]:
        strict = one["strict"]
        rows.add_row(
            kind,
            *(f"{strict[name]:.3f}" for name in ("precision", "recall", "f1")),
            _share(one["leak_recall"]),
            _share(one["character_precision"]),
            str(strict["support"]),
            f"{sum(frequency.values()) if kind == 'all' else frequency.get(kind, 0.0):.2f}",
        )
    return rows


def _share(value: float | None) -> str:
    """Return a share, or a dash of nothing."""
    return "–" if value is None else f"{value:.3f}"
