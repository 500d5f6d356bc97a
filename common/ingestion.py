"""Reading a data set: a folder with `train`, `devel` (or `dev`) and `test`, each a file or a folder.

    token/tag columns                             common.ingestion_columns
    BRAT standoff                                 common.ingestion_brat
    JSONL with spans                              common.ingestion_jsonl
    PubTator                                      common.ingestion_pubtator
    BioC JSON                                     common.ingestion_bioc
    Prodigy, Label Studio, CLUENER                common.ingestion_annotation_tools
    FHIR R4                                       common.ingestion_fhir
    CSV and Parquet                               common.ingestion_tables

The format is found by looking at the content (`common.ingestion_detection`), so any extension will do;
`docs/formats.md` shows each format and states its rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common.annotations import Counts
from common.errors import DataError
from common.ingestion_annotation_tools import cluener_notes, label_studio_notes, prodigy_notes
from common.ingestion_bioc import bioc_notes
from common.ingestion_brat import brat_notes, read_brat
from common.ingestion_columns import ColumnLayout, read_columns
from common.ingestion_detection import (
    DataFormat,
    DetectedFormat,
    data_files,
    delimiter_of,
    detect_format,
    is_by_line,
)
from common.ingestion_fhir import SPANS_SUFFIX, fhir_notes
from common.ingestion_jsonl import jsonl_notes
from common.ingestion_pubtator import pubtator_notes
from common.ingestion_records import Reading
from common.ingestion_rejects import OnReject, refuse
from common.ingestion_tables import TableLayout, csv_notes, parquet_notes
from common.labels import LabelSchema
from common.records import Note

__all__ = [
    "SPLIT_NAMES",
    "DataFormat",
    "Dataset",
    "DetectedFormat",
    "SplitReport",
    "detect_format",
    "find_split",
    "read_annotated",
    "read_dataset",
    "read_split",
    "require_annotated",
]

SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "devel": ("devel", "dev"),
    "test": ("test",),
}


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
    table: TableLayout | None = None,
) -> Dataset:
    """Read all splits of a folder into memory.

    Args:
        folder: Holds `train`, `devel` (or `dev`) and `test`, as files or folders.
        schema: The entity types, and the mapping of source labels.
        required: Splits that must be there; others may be absent.
        layout: Where columns stand, for the column format.
        table: Which named columns hold what, for CSV and Parquet.

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
        detected = detect_format(path, table=table)
        notes[split] = tuple(
            read_split(
                path, schema, split=split, counts=counts, layout=layout, table=table, detected=detected
            )
        )
        report[split] = SplitReport(path=path, detected=detected, counts=dict(+counts))
    if not notes:
        raise DataError("holds none of train, devel (or dev) and test, as files or as folders.", path=folder)
    return Dataset(**notes, report=report)


def require_annotated(counts: Mapping[str, int], path: Path) -> None:
    """Raise if a split that is trained on or scored against holds notes that nobody has annotated.

    Args:
        counts: What reading the split counted.
        path: The split.

    Raises:
        DataError: It does; such notes would be taken for notes without entities.
    """
    if unannotated := counts.get("unannotated", 0):
        raise DataError(
            f"holds {unannotated} notes that nobody has annotated; they would be taken for notes without entities. "
            "Add their spans, [] where there are none, or leave them out.",
            path=path,
            reason="unannotated",
        )


def read_annotated(path: Path, schema: LabelSchema, *, split: str) -> tuple[Note, ...]:
    """Return the notes of a split, all of which somebody has annotated.

    Raises:
        DataError: A file or line is not usable, or a note has no annotation.
    """
    counts: Counts = Counter()
    notes = tuple(read_split(path, schema, split=split, counts=counts))
    require_annotated(counts, path)
    return notes


def read_split(
    path: Path | str,
    schema: LabelSchema,
    *,
    split: str,
    counts: Counts | None = None,
    layout: ColumnLayout | None = None,
    table: TableLayout | None = None,
    detected: DetectedFormat | None = None,
    on_reject: OnReject | None = None,
) -> Iterator[Note]:
    """Yield the notes of one split, a file at a time; a folder's files come in order of their names.

    Args:
        path: A file or a folder.
        schema: The entity types.
        split: The split's name, from which note ids are made where the format has none.
        counts: Receives the counts of `common.annotations`, and `rejected`.
        layout: Where columns stand, for the column format.
        table: Which named columns hold what, for CSV and Parquet.
        detected: The format, if it is known; else it is detected.
        on_reject: Receives what cannot be read, and the rest is read; without it, the first such thing raises.

    Raises:
        DataError: A file or line is not usable.
    """
    path = Path(path)
    counts = Counter() if counts is None else counts
    try:
        found = (detected or detect_format(path, table=table)).format
    except DataError as error:
        refuse(error, on_reject)
        counts["rejected"] += 1
        return
    if found is DataFormat.BRAT:
        yield from _read_brat(path, schema, counts, on_reject)
        return
    reading = Reading(schema, split, counts, on_reject=on_reject)
    for file in data_files(path):
        try:
            if found is DataFormat.COLUMNS:
                yield from _columns(file, reading, layout)
            else:
                yield from _notes(file, found, reading, table or TableLayout())
        except DataError as error:
            # What is wrong with a file as a whole: no text, another encoding, cut short.
            reading.refuse(error)


def find_split(folder: Path | str, split: str) -> Path | None:
    """Return the file or folder of a split, or None where there is none.

    Raises:
        DataError: The folder does not exist, or several files or folders could be the split.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError("is not a folder; give the folder that holds train, devel and test.", path=folder)
    found = sorted(
        p
        for p in folder.iterdir()
        if p.name.split(".")[0] in SPLIT_NAMES[split] and not p.name.endswith(SPANS_SUFFIX)
    )
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


def _columns(file: Path, reading: Reading, layout: ColumnLayout | None) -> Iterator[Note]:
    """Yield the notes of a file of columns, numbered on from the files before it."""
    before = reading.counts["notes"] + reading.counts["rejected"] - reading.number
    yield from read_columns(
        file,
        reading.schema,
        reading.split,
        reading.counts,
        layout=layout,
        first_number=reading.number,
        on_reject=reading.on_reject,
    )
    reading.number = reading.counts["notes"] + reading.counts["rejected"] - before


def _notes(file: Path, found: DataFormat, reading: Reading, table: TableLayout) -> Iterator[Note]:
    """Yield the notes of a file of any other format."""
    match found:
        case DataFormat.JSONL:
            return jsonl_notes(file, reading)
        case DataFormat.PUBTATOR:
            return pubtator_notes(file, reading)
        case DataFormat.BIOC:
            return bioc_notes(file, reading, by_line=is_by_line(file))
        case DataFormat.PRODIGY:
            return prodigy_notes(file, reading)
        case DataFormat.LABEL_STUDIO:
            return label_studio_notes(file, reading)
        case DataFormat.CLUENER:
            return cluener_notes(file, reading)
        case DataFormat.FHIR:
            return fhir_notes(file, reading, by_line=is_by_line(file))
        case DataFormat.CSV:
            return csv_notes(file, reading, table, delimiter=delimiter_of(file, table))
        case DataFormat.PARQUET:
            return parquet_notes(file, reading, table)
    raise DataError(f"is of the format {found}, which is read elsewhere.", path=file)


def _read_brat(path: Path, schema: LabelSchema, counts: Counts, on_reject: OnReject | None) -> Iterator[Note]:
    """Yield the notes of a BRAT folder, or the one note of a pair of files."""
    if path.is_dir():
        yield from brat_notes(path, schema, counts, on_reject=on_reject)
        return
    text = path.with_suffix(".txt")
    try:
        if not text.is_file():
            raise DataError(
                "has no .txt file beside it; add the document's text.", path=path, reason="no-text-file"
            )
        note = read_brat(text, schema, counts, document_id=path.stem)
    except DataError as error:
        refuse(error, on_reject, note_id=path.stem)
        counts["rejected"] += 1
        return
    yield note
