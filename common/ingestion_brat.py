"""BRAT standoff: a document's text in `NAME.txt`, its annotations in `NAME.ann` beside it.

Only text-bound annotations (`T` lines) are entities; relations, events, attributes, normalisations and notes
are counted and left. Offsets count Unicode characters of the file as it is, line ends included, and every
span is checked against the mention that its line repeats.

Stated rules: fragments that only white space separates are one span (BRAT writes a mention over a line end
so). What is still discontinuous keeps its longest fragment, the first of equal ones, and is counted. Of
nested spans the outermost is kept and the others are counted; spans that cross are an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from common.annotations import Counts, SourceSpan, resolve_label, resolve_overlaps
from common.errors import DataError
from common.ingestion_rejects import OnReject, refuse
from common.labels import LabelSchema
from common.records import Note
from common.text_files import read_lines, read_text

DOCUMENT_TABLE = "documents.tsv"
_TEXT_BOUND = re.compile(r"(T\S+)\t(\S+) (\d{1,12} \d{1,12}(?:;\d{1,12} \d{1,12})*)(?:\t(.*))?")
_OTHER_KINDS = frozenset("REAMN*#")


def brat_documents(folder: Path, *, on_reject: OnReject | None = None) -> list[Path]:
    """Return the `.txt` files of a folder and its subfolders, in order, each with its `.ann`.

    Args:
        folder: The folder.
        on_reject: Receives the files that lack the other one, which are then left out.

    Raises:
        DataError: A text has no annotations, annotations have no text, or there is no document.
    """
    texts = sorted(_visible(folder, ".txt"))
    known = set(texts)
    for path in sorted(_visible(folder, ".ann")):
        if path.with_suffix(".txt") not in known:
            missing = "has no .txt file beside it; add the document's text or remove it."
            refuse(DataError(missing, path=path, reason="no-text-file"), on_reject, note_id=path.stem)
    pairs = []
    for text in texts:
        if text.with_suffix(".ann").is_file():
            pairs.append(text)
            continue
        missing = "has no .ann file beside it; add an empty one if the document has no entities."
        refuse(DataError(missing, path=text, reason="no-annotation-file"), on_reject, note_id=text.stem)
    if not texts:
        raise DataError("holds no .txt file with an .ann file beside it.", path=folder)
    return pairs


def read_brat(
    text_path: Path,
    schema: LabelSchema,
    counts: Counts,
    *,
    document_id: str,
    fields: Mapping[str, str] | None = None,
) -> Note:
    """Return the note of one document.

    Args:
        text_path: The `.txt` file; the `.ann` file stands beside it.
        schema: The entity types.
        counts: Receives the counts of `common.annotations`.
        document_id: The note's and the document's id.
        fields: The document's row in `documents.tsv`, without its id.

    Raises:
        DataError: A file or an annotation is not usable.
    """
    text = read_text(text_path)
    path = text_path.with_suffix(".ann")
    spans = []
    if path.stat().st_size:
        for line, content in read_lines(path):
            span = _annotation(content, text, schema, counts, path, line)
            if span is not None:
                spans.append(span)
    columns = dict(fields or {})
    counts["notes"] += 1
    return Note(
        note_id=document_id,
        text=text,
        spans=resolve_overlaps(spans, counts, path, allow_nested=True),
        document_id=document_id,
        patient_id=columns.pop("patient_id", None) or None,
        columns=columns,
    )


def read_document_table(
    folder: Path, *, on_reject: OnReject | None = None
) -> Mapping[str, Mapping[str, str]]:
    """Return `document_id -> fields` of a folder's `documents.tsv`, or nothing where it has none.

    The first row names the columns and the first column is the document id; `patient_id` is the patient,
    every other column becomes a column of the note.

    Raises:
        DataError: A row has another number of fields than the first, or repeats an id.
    """
    path = folder / DOCUMENT_TABLE
    table: dict[str, dict[str, str]] = {}
    if not path.is_file():
        return table
    header: list[str] = []
    for line, content in read_lines(path):
        fields = content.split("\t")
        if not header:
            header = fields
        elif len(fields) != len(header):
            wrong = f"has {len(fields)} fields; the first row names {len(header)}."
            refuse(DataError(wrong, path=path, line=line, reason="bad-row"), on_reject)
        elif fields[0] in table:
            wrong = f"repeats the document id {fields[0]!r}."
            refuse(DataError(wrong, path=path, line=line, reason="repeated-id"), on_reject)
        else:
            table[fields[0]] = dict(zip(header[1:], fields[1:], strict=True))
    return table


def brat_notes(
    folder: Path, schema: LabelSchema, counts: Counts, *, on_reject: OnReject | None = None
) -> Iterator[Note]:
    """Yield the notes of a folder; a document's id is its path in the folder, without the extension.

    Args:
        folder: The folder.
        schema: The entity types.
        counts: Receives the counts of `common.annotations`.
        on_reject: Receives the documents that cannot be read; without it, the first raises.

    Raises:
        DataError: See `brat_documents`, `read_brat` and `read_document_table`.
    """
    table = read_document_table(folder, on_reject=on_reject)
    for path in brat_documents(folder, on_reject=on_reject):
        document_id = path.relative_to(folder).with_suffix("").as_posix()
        try:
            if table and document_id not in table:
                raise DataError(
                    f"has no row for document {document_id!r}.", path=folder / DOCUMENT_TABLE, reason="no-row"
                )
            note = read_brat(path, schema, counts, document_id=document_id, fields=table.get(document_id))
        except DataError as error:
            refuse(error, on_reject, note_id=document_id)
            counts["rejected"] += 1
            continue
        yield note


def _visible(folder: Path, suffix: str) -> Iterator[Path]:
    """Yield the files with this suffix under a folder, hidden ones aside."""
    for path in folder.rglob(f"*{suffix}"):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _annotation(
    content: str, text: str, schema: LabelSchema, counts: Counts, path: Path, line: int
) -> SourceSpan | None:
    """Return the span of one line, or None where the line is no entity of ours."""
    if not content.strip():
        return None
    if not content.startswith("T"):
        if content[0] not in _OTHER_KINDS:
            raise DataError(
                "is no BRAT annotation; a line begins with T, R, E, A, M, N, * or #.",
                path=path,
                line=line,
                reason="bad-annotation",
            )
        counts["ignored_annotations"] += 1
        return None
    found = _TEXT_BOUND.fullmatch(content)
    if found is None:
        raise DataError(
            "is no text-bound annotation; it must read ID, tab, TYPE START END[;START END], tab, mention.",
            path=path,
            line=line,
            reason="bad-annotation",
        )
    name, label, offsets, mention = found.groups()
    fragments = [(int(start), int(end)) for start, end in re.findall(r"(\d+) (\d+)", offsets)]
    _check_fragments(name, fragments, len(text), path, line)
    _check_mention(name, fragments, text, mention, path, line)
    resolved = resolve_label(label, schema, counts, path, line)
    if not resolved:
        return None
    joined = _join(fragments, text)
    counts["discontinuous_cut"] += len(joined) > 1
    start, end = max(joined, key=lambda fragment: fragment[1] - fragment[0])
    return SourceSpan(start=start, end=end, label=resolved, line=line, name=name, is_cut=len(joined) > 1)


def _check_fragments(name: str, fragments: list[tuple[int, int]], length: int, path: Path, line: int) -> None:
    """Raise unless the fragments are non-empty, in order and inside the text."""
    previous = 0
    for start, end in fragments:
        if end > length:
            raise DataError(
                f"span {name} [{start}, {end}) goes past the text, which has {length} characters; "
                "offsets count characters (not bytes), and the text must be the annotated version.",
                path=path,
                line=line,
                reason="bad-span",
            )
        if start >= end or start < previous:
            raise DataError(
                f"span {name} [{start}, {end}) is empty, reversed or out of order.",
                path=path,
                line=line,
                reason="bad-span",
            )
        previous = end


def _check_mention(
    name: str, fragments: list[tuple[int, int]], text: str, mention: str | None, path: Path, line: int
) -> None:
    """Raise if the mention that the line repeats is not what the text has there, white space aside."""
    if mention is None:
        return
    covered = " ".join(text[start:end] for start, end in fragments)
    if "".join(covered.split()) != "".join(mention.split()):
        raise DataError(
            f"span {name} covers other characters than its mention says; offsets count characters of the "
            ".txt file as it is, so check its encoding and line ends.",
            path=path,
            line=line,
            reason="bad-span",
        )


def _join(fragments: list[tuple[int, int]], text: str) -> list[tuple[int, int]]:
    """Join fragments between which the text has only white space."""
    joined = [fragments[0]]
    for start, end in fragments[1:]:
        if text[joined[-1][1] : start].strip():
            joined.append((start, end))
        else:
            joined[-1] = (joined[-1][0], end)
    return joined
