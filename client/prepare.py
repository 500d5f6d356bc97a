"""A site's records made ready: read in any format, through the stages, split by patient, written as JSONL.

Notes stream: what is in memory does not grow with their number, except an index of at most 1 KB a note that knows
copies and ids. What cannot be used is counted and listed with a reason and never with text; the rest goes on.

```
OUT/                     mode 0700, every file 0600
├── train.jsonl          and devel.jsonl, test.jsonl where there are any
├── rejects.jsonl        one line each: file, line, id, stage, reason
└── preparation.json     counts; they describe private data and stay at the site
```
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, TypeVar

from client.deidentification_settings import DeidentificationTable
from client.preparation_labels import source_labels
from client.preparation_settings import PreparationTable
from client.preprocessing import Rejected
from client.preprocessing_build import Recipe
from client.preprocessing_pool import PooledPipeline
from client.splits import LabelBalance, Splitter, load_split_key, unit_for
from common.annotations import Counts
from common.errors import DataError, InputError
from common.files import replacing
from common.ingestion import SPLIT_NAMES, detect_format, find_split, read_split
from common.ingestion_detection import data_files
from common.ingestion_jsonl import json_line
from common.ingestion_rejects import OnReject, Reject, refuse
from common.plan import Plan
from common.preparation import require_stages
from common.records import Note
from common.text_files import watching_bytes

DEFAULT_STAGES = require_stages(
    "the default stages",
    ["unicode", "line_breaks", "whitespace", "repeated_parts", {"name": "near_duplicates", "within": "site"}],
)
"""What happens without a plan."""

READING, WRITING, SPLITTING = "reading", "writing", "splitting"

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class PrepareJob:
    """What is to be prepared, and how.

    Attributes:
        source: A file, a folder of one format, or a folder with `train`, `devel` and `test`.
        plan: The plan, whose stages come first; None for the default stages.
        site: The site's own additions.
        fractions: Shares of train, devel and test to divide the notes into; None leaves them as they are.
        strict: Stop at the first thing that cannot be used.
        workers: Processes.
        tokens_of: A plan whose word pieces and windows are counted; None counts none.
        deidentification: How the site de-identifies.
        device: Where a tagger of the de-identification runs.
    """

    source: Path
    plan: Plan | None = None
    site: PreparationTable = field(default_factory=PreparationTable)
    fractions: tuple[float, ...] | None = None
    strict: bool = False
    workers: int = 1
    tokens_of: Plan | None = None
    deidentification: DeidentificationTable | None = None
    device: str = "auto"

    def recipe(self, on_reject: OnReject | None = None) -> Recipe:
        """Return the stages; see `PreparationTable.recipe`."""
        return dataclasses.replace(self._stages(on_reject), tokens_of=self.tokens_of)

    def _stages(self, on_reject: OnReject | None) -> Recipe:
        """Return the stages of the plan and of the site, or the default ones."""
        site = self.site
        if self.plan is None and not site.stages:
            site = dataclasses.replace(site, stages=DEFAULT_STAGES)
        return site.recipe(
            self.plan, deidentification=self.deidentification, device=self.device, on_reject=on_reject
        )

    def inputs(self) -> dict[str, Path]:
        """Return the file or folder of each split.

        Raises:
            InputError: Notes that are in splits already are to be split.
        """
        if not self.source.exists():
            raise DataError("does not exist.", path=self.source)
        found: dict[str, Path] = {}
        if self.source.is_dir():
            listed = {name: find_split(self.source, name) for name in SPLIT_NAMES}
            found = {name: path for name, path in listed.items() if path is not None}
        if self.fractions is not None and len(found) > 1:
            raise InputError(
                f"{self.source} has the splits {', '.join(found)} already; leave out --split, or name one."
            )
        return found or {"train": self.source}

    def read(self, split: str, path: Path, counts: Counts, on_reject: OnReject | None) -> Iterator[Note]:
        """Yield the notes of one input, with the source's labels."""
        return read_split(
            path,
            source_labels(self.plan),
            split=split,
            counts=counts,
            table=self.site.table,
            detected=self.site.detected,
            on_reject=on_reject,
        )


@dataclass(frozen=True, kw_only=True)
class PrepareResult:
    """What was done.

    Attributes:
        formats: For each input, its format and why.
        read: Counts of reading, see `common.annotations`.
        written: Notes in each split.
        stages: What each stage changed, by kind.
        rejects: How often each reason came up.
        seconds: Processor seconds of reading, each stage and writing.
        wall_seconds: How long it all took.
        split_by: Whose id decided the split; None where nothing was divided.
        balance: Notes, ids and mentions of each split.
    """

    formats: dict[str, str]
    read: dict[str, int] = field(repr=False)
    written: dict[str, int] = field(repr=False)
    stages: dict[str, dict[str, int]] = field(repr=False)
    rejects: dict[str, int] = field(repr=False)
    seconds: dict[str, float]
    wall_seconds: float
    split_by: str | None
    balance: dict[str, Any] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            name: getattr(self, name)
            for name in ("formats", "read", "written", "stages", "rejects", "seconds", "wall_seconds")
        } | {"split_by": self.split_by, "splits": self.balance}

    def shares(self) -> dict[str, float]:
        """Return each part's share of all processor seconds, from 0 to 1."""
        total = sum(self.seconds.values()) or 1.0
        return {name: seconds / total for name, seconds in self.seconds.items()}


def prepare(
    job: PrepareJob,
    out: Path,
    *,
    on_bytes: Callable[[int], None] = lambda count: None,
    on_note: Callable[[], None] = lambda: None,
) -> PrepareResult:
    """Prepare notes and write them.

    Args:
        job: What is to be done.
        out: A folder that is absent or empty.
        on_bytes: Called with the number of bytes of each part of the input that was read.
        on_note: Called after each note that was written or rejected by a stage.

    Raises:
        InputError: The folder, the input or the settings cannot be used.
        DataError: Nothing could be used, or the job is strict and something could not.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not an empty folder; name another one.")
    inputs = job.inputs()
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ExitStack() as stack:
        run = _Run(job, _Files(out, stack), on_note)
        stack.enter_context(watching_bytes(on_bytes))
        for split, path in inputs.items():
            run.prepare(split, path)
        result = run.result()
        if not sum(result.written.values()):
            reasons = ", ".join(f"{reason} ({n})" for reason, n in sorted(result.rejects.items()))
            raise DataError(f"gives no note that can be used: {reasons or 'it is empty'}.", path=job.source)
        run.files.open("preparation.json").write(json.dumps(result.to_dict(), indent=2) + "\n")
    return result


def input_bytes(job: PrepareJob) -> int:
    """Return how many bytes reading will pass over, for a progress bar."""
    total = 0
    for path in job.inputs().values():
        try:
            detected = job.site.detected or detect_format(path, table=job.site.table)
        except DataError:
            continue
        beside = path.with_suffix(".txt") if path.suffix == ".ann" else None
        files = [*data_files(path), *([beside] if beside and beside.exists() else [])]
        # Columns are read twice, first to find the tag scheme.
        total += sum(file.stat().st_size for file in files) * (2 if detected.format == "columns" else 1)
    return total


class _Files:
    """The files of a folder, each whole or not at all, mode 0600."""

    def __init__(self, out: Path, stack: ExitStack) -> None:
        self._out = out
        self._stack = stack
        self._open: dict[str, TextIO] = {}

    def open(self, name: str) -> TextIO:
        """Return the file to write to."""
        if name not in self._open:
            partial = self._stack.enter_context(replacing(self._out / name))
            handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            # Closed before the file takes its name: contexts end in reverse.
            self._open[name] = self._stack.enter_context(
                os.fdopen(handle, "w", encoding="utf-8", newline="\n")
            )
        return self._open[name]


class _Run:
    """One preparation under way."""

    def __init__(self, job: PrepareJob, files: _Files, on_note: Callable[[], None]) -> None:
        self.files = files
        self._job = job
        self._on_note = on_note
        self._rejects = Counter[str]()
        self._reject_file = files.open("rejects.jsonl")
        self._root = job.source if job.source.is_dir() else job.source.parent
        listener = None if job.strict else self._reject_record
        self._pipeline = PooledPipeline(
            job.recipe(listener), workers=job.workers, strict=job.strict, on_reject=self._reject_note
        )
        self._listener = listener
        self._counts: Counts = Counter()
        self._formats: dict[str, str] = {}
        self._written = Counter[str]()
        self._balance = LabelBalance()
        self._splitter: Splitter | None = None
        self._seconds = {READING: 0.0, WRITING: 0.0}
        self._begin = time.perf_counter()

    def prepare(self, split: str, path: Path) -> None:
        """Prepare one input."""
        try:
            detected = self._job.site.detected or detect_format(path, table=self._job.site.table)
        except DataError as error:
            refuse(error, self._listener)
            return
        self._formats[split] = f"{detected.format}: {detected.reason}"
        notes = self._job.read(split, path, self._counts, self._listener)
        for note in self._pipeline.run(self._timed(notes)):
            begin = time.process_time()
            self._write(split, note)
            self._seconds[WRITING] += time.process_time() - begin
            self._on_note()

    def result(self) -> PrepareResult:
        """Return what was done."""
        return PrepareResult(
            formats=self._formats,
            read=dict(+self._counts),
            written=dict(self._written),
            stages=self._pipeline.counts(),
            rejects=dict(sorted(self._rejects.items())),
            seconds={
                READING: self._seconds[READING],
                **self._pipeline.seconds(),
                WRITING: self._seconds[WRITING],
            },
            wall_seconds=time.perf_counter() - self._begin,
            split_by=None if self._splitter is None else self._splitter.unit,
            balance=self._balance.to_dict(),
        )

    def _write(self, split: str, note: Note) -> None:
        """Write one note to its split."""
        try:
            if self._job.fractions is not None:
                splitter = self._splitter or self._make_splitter(note)
                split, unit = splitter.split_of(note), splitter.id_of(note)
            else:
                unit = note.patient_id or note.document_id or note.note_id
        except Rejected as error:
            if self._job.strict:
                raise
            self._reject_note(note.note_id, SPLITTING, error.reason)
            return
        self.files.open(f"{split}.jsonl").write(json_line(note) + "\n")
        self._written[split] += 1
        self._balance.add(split, note, unit)

    def _make_splitter(self, first: Note) -> Splitter:
        """Make the splitter; `auto` means the largest unit that the first note names."""
        site = self._job.site
        if self._job.fractions is None or site.split_key is None:
            raise InputError(
                "--split needs a key; name its file with --split-key, or as split_key in site.toml."
            )
        unit = unit_for(first) if site.split_by == "auto" else site.split_by
        self._splitter = Splitter(
            fractions=self._job.fractions, unit=unit, key=load_split_key(site.split_key)
        )
        return self._splitter

    def _timed(self, notes: Iterable[_T]) -> Iterator[_T]:
        """Yield what comes, counting the time that it takes to come."""
        source = iter(notes)
        while True:
            begin = time.process_time()
            try:
                note = next(source)
            except StopIteration:
                return
            finally:
                self._seconds[READING] += time.process_time() - begin
            yield note

    def _reject_record(self, reject: Reject) -> None:
        """List a record that could not be read."""
        file = None
        if reject.path is not None:
            inside = reject.path.is_relative_to(self._root)
            file = str(reject.path.relative_to(self._root) if inside else reject.path)
        self._list(reject.reason, file=file, line=reject.line, id=reject.note_id, stage=READING)

    def _reject_note(self, note_id: str, stage: str, reason: str) -> None:
        """List a note that a stage did not keep."""
        self._list(reason, file=None, line=None, id=note_id, stage=stage)
        self._on_note()

    def _list(self, reason: str, **where: str | int | None) -> None:
        """Write one line of the list, and count it."""
        self._rejects[reason] += 1
        self._reject_file.write(json.dumps({**where, "reason": reason}, ensure_ascii=False) + "\n")
