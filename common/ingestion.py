"""Reading a data set: a folder with `train`, `devel` (or `dev`) and `test`, each a file or a folder.

    train.tsv | train.conll | ...     token/tag columns       common.ingestion_columns
    train/*.txt + train/*.ann         BRAT standoff           common.ingestion_brat
    train.jsonl | train/*.json | ...  JSONL with spans        common.ingestion_jsonl

The format is found by looking at the content, so any extension will do; `docs/formats.md` shows each format
and states its rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from common.annotations import Counts
from common.errors import DataError
from common.ingestion_brat import DOCUMENT_TABLE, brat_notes, read_brat
from common.ingestion_columns import ColumnLayout, read_columns
from common.ingestion_jsonl import read_jsonl
from common.labels import LabelSchema
from common.records import Note
from common.tag_schemes import split_tag
from common.text_files import read_lines

SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "devel": ("devel", "dev"),
    "test": ("test",),
}


class DataFormat(StrEnum):
    """The formats that ingestion reads."""

    COLUMNS = "columns"
    BRAT = "brat"
    JSONL = "jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectedFormat:
    """A format, and one sentence that says what gave it away."""

    format: DataFormat
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitReport:
    """Where a split came from and what was read, kept, changed and left out.

    Attributes:
        path: The file or folder.
        detected: Its format, and why.
        counts: The counts of `common.annotations`; they describe private data and stay at the site.
    """

    path: Path
    detected: DetectedFormat
    counts: Mapping[str, int] = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """The notes of each split (empty where the folder has no such split), and a report on each."""

    train: tuple[Note, ...] = field(default=(), repr=False)
    devel: tuple[Note, ...] = field(default=(), repr=False)
    test: tuple[Note, ...] = field(default=(), repr=False)
    report: Mapping[str, SplitReport] = field(default_factory=dict)


def read_dataset(
    folder: Path | str,
    schema: LabelSchema,
    *,
    required: Collection[str] = ("train", "devel", "test"),
    layout: ColumnLayout | None = None,
) -> Dataset:
    """Read all splits of a folder into memory.

    Args:
        folder: Holds `train`, `devel` (or `dev`) and `test`, as files or folders.
        schema: The entity types, and the mapping of source labels.
        required: Splits that must be there; others may be absent.
        layout: Where columns stand, for the column format.

    Raises:
        DataError: The folder, a split, a file or a line is not usable; the sentence names it.
    """
    folder = Path(folder)
    notes: dict[str, tuple[Note, ...]] = {}
    report: dict[str, SplitReport] = {}
    for split in SPLIT_NAMES:
        path = find_split(folder, split)
        if path is None:
            if split in required:
                raise DataError(_missing(split), path=folder)
            continue
        counts: Counts = Counter()
        notes[split] = tuple(read_split(path, schema, split=split, counts=counts, layout=layout))
        report[split] = SplitReport(path=path, detected=detect_format(path), counts=dict(+counts))
    if not notes:
        raise DataError("holds none of train, devel (or dev) and test, as files or as folders.", path=folder)
    return Dataset(**notes, report=report)


def read_split(
    path: Path | str,
    schema: LabelSchema,
    *,
    split: str,
    counts: Counts | None = None,
    layout: ColumnLayout | None = None,
    detected: DetectedFormat | None = None,
) -> Iterator[Note]:
    """Yield the notes of one split, a file at a time; a folder's files come in order of their names.

    Args:
        path: A file or a folder.
        schema: The entity types.
        split: The split's name, from which note ids are made where the format has none.
        counts: Receives the counts of `common.annotations`.
        layout: Where columns stand, for the column format.
        detected: The format, if it is known; else it is detected.

    Raises:
        DataError: A file or line is not usable.
    """
    path = Path(path)
    counts = Counter() if counts is None else counts
    found = (detected or detect_format(path)).format
    if found is DataFormat.BRAT:
        yield from _read_brat(path, schema, counts)
        return
    number, seen_ids = 0, set[str]()
    for file in _files(path):
        if found is DataFormat.JSONL:
            notes = read_jsonl(file, schema, split, counts, first_number=number, seen_ids=seen_ids)
        else:
            notes = read_columns(file, schema, split, counts, layout=layout, first_number=number)
        for note in notes:
            number += 1
            yield note


def detect_format(path: Path | str) -> DetectedFormat:
    """Find the format of a file or folder by looking at it.

    Raises:
        DataError: It does not exist, is empty, or is a folder without usable files.
    """
    path = Path(path)
    if path.is_dir():
        if any(path.rglob("*.ann")):
            return DetectedFormat(format=DataFormat.BRAT, reason="The folder holds .ann files.")
        first = _files(path)[0]
        inner = detect_format(first)
        return DetectedFormat(format=inner.format, reason=f"In {first.name}: {inner.reason}")
    if path.suffix in (".txt", ".ann") and path.with_suffix(".ann").exists():
        return DetectedFormat(format=DataFormat.BRAT, reason="A .ann file belongs to the .txt file.")
    first_line = _first_line(path)
    if first_line.lstrip().startswith(("{", "[")) and not _is_row(first_line):
        if first_line.lstrip().startswith("["):
            raise DataError("is a JSON array; write JSONL, which has one object a line.", path=path, line=1)
        return DetectedFormat(format=DataFormat.JSONL, reason="The first line opens a JSON object.")
    if path.suffix == ".txt" and not first_line.startswith("#") and len(first_line.split()) > 5:
        raise DataError(
            "looks like a document, but no .ann file is beside it; add one, empty if it has no entities.",
            path=path,
        )
    return DetectedFormat(
        format=DataFormat.COLUMNS, reason="The first line is no JSON object and no .ann file is there."
    )


def find_split(folder: Path | str, split: str) -> Path | None:
    """Return the file or folder of a split, or None where there is none.

    Raises:
        DataError: The folder does not exist, or several files or folders could be the split.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError("is not a folder; give the folder that holds train, devel and test.", path=folder)
    found = sorted(p for p in folder.iterdir() if p.name.split(".")[0] in SPLIT_NAMES[split])
    if len(found) == 2 and {p.suffix for p in found} == {".txt", ".ann"} and found[0].stem == found[1].stem:
        return found[1]
    if len(found) > 1:
        names = ", ".join(p.name for p in found)
        raise DataError(f"holds several candidates for {split} ({names}); keep one.", path=folder)
    return found[0] if found else None


def _missing(split: str) -> str:
    """Say which split is missing and how it may be called."""
    names = " or ".join(SPLIT_NAMES[split])
    return f"has no split {split}; add a file or a folder called {names}, with any extension."


def _read_brat(path: Path, schema: LabelSchema, counts: Counts) -> Iterator[Note]:
    """Yield the notes of a BRAT folder, or the one note of a pair of files."""
    if path.is_dir():
        yield from brat_notes(path, schema, counts)
        return
    text = path.with_suffix(".txt")
    if not text.is_file():
        raise DataError("has no .txt file beside it; add the document's text.", path=path)
    yield read_brat(text, schema, counts, document_id=path.stem)


def _files(path: Path) -> list[Path]:
    """Return a file, or the visible files under a folder in order."""
    if not path.is_dir():
        return [path]
    files = sorted(
        p
        for p in path.rglob("*")
        if p.is_file()
        and p.name != DOCUMENT_TABLE
        and not any(part.startswith(".") for part in p.relative_to(path).parts)
    )
    if not files:
        raise DataError("is an empty folder; put the split's files into it, or leave it out.", path=path)
    return files


def _is_row(line: str) -> bool:
    """Return whether a line that opens with a bracket is the word `{` or `[` with its tag."""
    return split_tag(line.split()[-1]) is not None


def _first_line(path: Path) -> str:
    """Return the first line that is not blank, or "" of a file with blank lines only."""
    if not path.exists():
        raise DataError("does not exist.", path=path)
    return next((line for _, line in read_lines(path) if line.strip()), "")
