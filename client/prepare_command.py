"""`fedward-site prepare`: what the operator sees of a preparation."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from client.preparation_settings import PreparationTable
from client.prepare import PrepareJob, PrepareResult, input_bytes, prepare
from client.preprocessing import Rejected
from client.settings import read_settings
from client.splits import parse_fractions
from common.errors import InputError
from common.ingestion_detection import named_format
from common.plan import Plan, read_plan
from common.records import Note
from common.text_edits import EditConflict

_MOST_WORKERS = 16
_CHANGES_SHOWN = 12
_CONTEXT = 24


def run_prepare(
    console: Console,
    source: Path,
    *,
    out: Path | None,
    site: Path | None = None,
    plan: Path | None = None,
    dry_run: bool = False,
    strict: bool = False,
    data_format: str = "auto",
    split: str = "",
    split_key: Path | None = None,
    split_by: str = "",
    workers: int = 0,
    sample: int = 3,
    tokens: bool = False,
) -> None:
    """Run the command.

    Raises:
        InputError: An option, the settings or the input cannot be used.
    """
    job = make_job(
        source,
        out=out,
        site=site,
        plan=plan,
        strict=strict,
        data_format=data_format,
        split=split,
        split_key=split_key,
        split_by=split_by,
        workers=workers,
    )
    if tokens:
        if job.plan is None:
            raise InputError(
                "--tokens counts the pieces of a plan's encoder; give --plan, or --site with a plan."
            )
        job = dataclasses.replace(job, tokens_of=job.plan)
    if dry_run:
        show_sample(console, job, sample)
        return
    if out is None:
        raise InputError("--out is missing; name a folder for the prepared notes, or use --dry-run.")
    result = _with_progress(console, job, out)
    _show(console, result, out)
    if result.split_by is not None:
        console.print(
            f"The split key is {job.site.split_key}; keep it: with it, records that come later change no split.",
            soft_wrap=True,
            highlight=False,
        )


def make_job(
    source: Path,
    *,
    out: Path | None,
    site: Path | None,
    plan: Path | None,
    strict: bool,
    data_format: str,
    split: str,
    split_key: Path | None,
    split_by: str,
    workers: int,
) -> PrepareJob:
    """Return the job that the options of the command describe; what an option says goes before `site.toml`."""
    named_format(data_format)
    settings = None if site is None else read_settings(site)
    table = PreparationTable() if settings is None else settings.preparation
    agreed: Plan | None = None
    if plan is not None:
        agreed = read_plan(plan)
    elif settings is not None and settings.site.plan is not None:
        agreed = read_plan(settings.site.plan)
    fractions = parse_fractions(split) if split else None
    beside = None if out is None else _key_beside(out)
    table = dataclasses.replace(
        table,
        format=data_format if data_format != "auto" else table.format,
        split_by=split_by or table.split_by,
        split_key=split_key or table.split_key or beside,
    )
    return PrepareJob(
        source=source,
        plan=agreed,
        site=table,
        fractions=fractions,
        strict=strict,
        workers=workers or min(_MOST_WORKERS, len(os.sched_getaffinity(0))),
        deidentification=None if settings is None else settings.deidentification,
        device="auto" if settings is None else settings.site.device,
    )


def show_sample(console: Console, job: PrepareJob, sample: int) -> None:
    """Show what each stage does to the first notes. It is clinical text, so it goes to a terminal only.

    Raises:
        InputError: The output is no terminal, or there is no note.
    """
    if not console.is_terminal:
        raise InputError(
            "--dry-run shows clinical text, on a terminal only; run it there, and not into a file or a pipe."
        )
    stages = job.recipe().build()
    shown = 0
    for note in islice(_sample(job), sample):
        shown += 1
        console.rule(Text(f"note {note.note_id}"))
        for stage in stages:
            try:
                after = stage.apply(note)
            except (Rejected, EditConflict) as error:
                console.print(Text(f"{stage.name}: left out ({error.reason})", style="bold red"))
                break
            for line in _changes(stage.name, note, after):
                console.print(line, soft_wrap=True)
            note = after
    if not shown:
        raise InputError(f"{job.source} has no note that can be read; run prepare to see the reasons.")
    console.print("Nothing was written.")


def _key_beside(out: Path) -> Path:
    """Return where the split key is kept if nothing else is said: beside the output, which must be empty."""
    return out.with_name(f"{out.name}.split.key")


def _sample(job: PrepareJob) -> Iterator[Note]:
    """Yield notes; what cannot be read is passed over."""
    for split, path in job.inputs().items():
        yield from job.read(split, path, Counter(), lambda reject: None)


def _changes(stage: str, before: Note, after: Note) -> Iterator[Text]:
    """Yield a line for each change: what stood there, and what stands there now."""
    if before.text == after.text:
        return
    old, new = before.text, after.text
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    changes = [code for code in matcher.get_opcodes() if code[0] != "equal"]
    for _, a, b, c, d in changes[:_CHANGES_SHOWN]:
        line = Text(f"{stage}: …{_visible(old[max(0, a - _CONTEXT) : a])}")
        line.append(_visible(old[a:b]), style="red strike")
        line.append(_visible(new[c:d]), style="green")
        line.append(f"{_visible(old[b : b + _CONTEXT])}…")
        yield line
    if len(changes) > _CHANGES_SHOWN:
        yield Text(f"{stage}: and {len(changes) - _CHANGES_SHOWN} more changes")


def _visible(text: str) -> str:
    """Return a text in which white space and invisible characters can be seen."""
    shown = (
        c if c.isprintable() else {"\n": "⏎", "\t": "⇥", "\r": "␍"}.get(c, f"‹{ord(c):04X}›") for c in text
    )
    return "".join(shown)


def _with_progress(console: Console, job: PrepareJob, out: Path) -> PrepareResult:
    """Prepare with a bar that shows the time left."""
    columns = (
        TextColumn("Preparing"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[notes]} notes,"),
        TimeElapsedColumn(),
        TextColumn("passed,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("prepare", total=max(input_bytes(job), 1), notes=0)
        notes = 0

        def on_note() -> None:
            nonlocal notes
            notes += 1
            progress.update(task, notes=notes)

        result = prepare(
            job, out, on_bytes=lambda count: progress.update(task, advance=count), on_note=on_note
        )
        progress.update(task, completed=progress.tasks[0].total)
    return result


def _show(console: Console, result: PrepareResult, out: Path) -> None:
    """Print what was read, changed, left out and written."""
    for split, reason in result.formats.items():
        console.print(f"{split} is {reason}", soft_wrap=True, highlight=False)
    shares = result.shares()
    stages = Table("stage", "what it changed", "time", title="Stages")
    for name, share in shares.items():
        counts = result.stages.get(name, result.read if name == "reading" else {})
        said = ", ".join(f"{kind} {number}" for kind, number in counts.items() if number)
        stages.add_row(name, said, f"{share:.0%}")
    console.print(stages)
    if result.rejects:
        rejects = Table("reason", "count", title="Left out")
        for reason, number in result.rejects.items():
            rejects.add_row(reason, str(number))
        console.print(rejects)
    _show_splits(console, result)
    rate = sum(result.written.values()) / max(result.wall_seconds, 1e-9)
    console.print(
        f"Wrote {sum(result.written.values())} notes to {out}, {rate:.0f} a second. What was left out is in "
        f"{out / 'rejects.jsonl'}, the counts are in {out / 'preparation.json'}.",
        soft_wrap=True,
        highlight=False,
    )
    if unannotated := result.read.get("unannotated", 0):
        console.print(
            f"{unannotated} notes were never annotated: they are written without entities, and are no training "
            "examples before somebody has annotated them.",
            soft_wrap=True,
            highlight=False,
        )


def _show_splits(console: Console, result: PrepareResult) -> None:
    """Print each split's size and how the labels fall into the splits."""
    title = "Splits" if result.split_by is None else f"Splits by {result.split_by}"
    labels = sorted({label for entry in result.balance.values() for label in entry["mentions"]})
    table = Table("split", "notes", "units", *labels, title=title)
    for name, entry in result.balance.items():
        total = sum(entry["mentions"].values()) or 1
        cells = [
            f"{entry['mentions'].get(label, 0)} ({entry['mentions'].get(label, 0) / total:.0%})"
            for label in labels
        ]
        table.add_row(name, str(entry["notes"]), str(entry["units"]), *cells)
    console.print(table)
