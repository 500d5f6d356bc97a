"""Token/tag columns (CoNLL, TSV): one word a line, a blank line between notes.

The text of a note is its words joined by single spaces; `Note.words` holds their offsets. Documents come from
`-DOCSTART-` lines and `# doc_id = ...` comments, patients from `# patient_id = ...`. `docs/formats.md` has
the rules in full.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from common.annotations import Counts, resolve_label
from common.errors import DataError
from common.ingestion_rejects import OnReject, refuse
from common.labels import LabelSchema
from common.records import EntitySpan, Note
from common.tag_schemes import TagScheme, TagStatistics, decode, split_tag
from common.text_files import read_lines

_DOCSTART = "-DOCSTART-"
_COMMENT = re.compile(r"#\s*([A-Za-z][\w.-]*)\s*=\s*(.*?)\s*")
_DOCUMENT_KEYS = frozenset({"doc_id", "document_id"})


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnLayout:
    """Which columns hold the word and the tag, counted from 0; negative numbers count from the end.

    Attributes:
        word_column: The word's column.
        tag_column: The tag's column.
        scheme: The tag scheme, checked strictly; None detects it per file.
    """

    word_column: int = 0
    tag_column: int = -1
    scheme: TagScheme | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Context:
    """What the comments so far say of the notes that follow."""

    document_id: str | None = None
    patient_id: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sentence:
    """The rows of one note: words, split tags, each row's line number, and what is wrong with them."""

    words: list[str] = field(default_factory=list)
    tags: list[tuple[str, str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    context: _Context = field(default_factory=_Context)
    errors: list[DataError] = field(default_factory=list)


def read_columns(
    path: Path,
    schema: LabelSchema,
    split: str,
    counts: Counts,
    *,
    layout: ColumnLayout | None = None,
    first_number: int = 0,
    on_reject: OnReject | None = None,
) -> Iterator[Note]:
    """Yield the notes of one file; it is read twice, first to detect the tag scheme.

    Args:
        path: A UTF-8 file.
        schema: The entity types.
        split: The split's name; note ids are `<split>-<number>`.
        counts: Receives the counts of `common.annotations`.
        layout: Where word and tag stand; first and last column by default.
        first_number: The number of the file's first note.
        on_reject: Receives the notes that cannot be read; without it, the first raises.

    Raises:
        DataError: The file, a line or a tag is not usable.
    """
    layout = layout or ColumnLayout()
    statistics = TagStatistics()
    tolerant = on_reject is not None
    for sentence in _sentences(path, split, Counts(), layout, tolerant):
        if not sentence.errors:
            statistics.observe(sentence.tags)
    if not statistics.prefixes:
        raise DataError("has no words, only blank or comment lines; leave the file out.", path=path)
    scheme = layout.scheme or statistics.detect()
    strict = layout.scheme is not None or scheme in (TagScheme.IOBES, TagScheme.BILOU)
    sentences = _sentences(path, split, counts, layout, tolerant)
    for number, sentence in enumerate(sentences, start=first_number):
        try:
            for error in sentence.errors:
                raise error
            spans = _spans(sentence, schema, scheme, strict, counts, path)
        except DataError as error:
            refuse(error, on_reject, note_id=f"{split}-{number}")
            counts["rejected"] += 1
            continue
        counts["notes"] += 1
        counts["words"] += len(sentence.words)
        yield _note(f"{split}-{number}", sentence, spans)


def _note(note_id: str, sentence: _Sentence, chunks: list[tuple[int, int, str]]) -> Note:
    """Join the words with single spaces and place the chunks on their characters."""
    words, start = [], 0
    for word in sentence.words:
        words.append((start, start + len(word)))
        start += len(word) + 1
    return Note(
        note_id=note_id,
        text=" ".join(sentence.words),
        spans=tuple(
            EntitySpan(start=words[first][0], end=words[end - 1][1], label=label)
            for first, end, label in chunks
        ),
        document_id=sentence.context.document_id,
        patient_id=sentence.context.patient_id,
        words=tuple(words),
        columns=sentence.context.columns,
    )


def _spans(
    sentence: _Sentence, schema: LabelSchema, scheme: TagScheme, strict: bool, counts: Counts, path: Path
) -> list[tuple[int, int, str]]:
    """Read the tags in the file's scheme and map the labels; broken transitions raise or are counted."""
    decoded = decode(sentence.tags, scheme)
    if decoded.violations and strict:
        index = decoded.violations[0]
        tag = "-".join(part for part in sentence.tags[index] if part)
        raise DataError(
            f"tag {tag!r} breaks the {scheme} scheme here (or the tag before it does); correct the tags, "
            "or name the file's scheme if it is another.",
            path=path,
            line=sentence.lines[index],
        )
    counts["repaired_tags"] += len(decoded.violations)
    kept = []
    for first, end, label in decoded.chunks:
        resolved = resolve_label(label, schema, counts, path, sentence.lines[first])
        if resolved:
            kept.append((first, end, resolved))
            counts["spans"] += 1
            counts[f"spans.{resolved}"] += 1
    return kept


def _sentences(
    path: Path, split: str, counts: Counts, layout: ColumnLayout, tolerant: bool
) -> Iterator[_Sentence]:
    """Yield blocks of rows, with the context that comments and `-DOCSTART-` set, and their errors if tolerant."""
    context, comments, documents = _Context(), dict[str, str](), 0
    prefix = split if path.stem == split else f"{split}-{path.stem}"
    sentence, width, damaged = _Sentence(), 0, list[DataError]()
    for number, line in read_lines(path, on_error=damaged.append if tolerant else None):
        while damaged:
            sentence.errors.append(damaged.pop())
        if not line.strip(" \t"):
            if sentence.words or sentence.errors:
                yield sentence
                sentence = _Sentence()
            continue
        if line.startswith(_DOCSTART):
            if sentence.words or sentence.errors:
                yield sentence
                sentence = _Sentence()
            context, comments = _Context(document_id=f"{prefix}-doc-{documents}"), {}
            documents += 1
            continue
        if not sentence.words and line.startswith("#") and (found := _comment(line, counts)) is not None:
            comments |= found
            continue
        if not sentence.words:
            context, comments = _apply(context, comments), {}
            sentence = replace(sentence, context=context)
        fields = line.split("\t") if "\t" in line else [part for part in line.split(" ") if part]
        width = width or len(fields)
        try:
            _append(sentence, fields, width, layout, path, number)
        except DataError as error:
            if not tolerant:
                raise
            sentence.errors.append(error)
    sentence.errors.extend(damaged)
    if sentence.words or sentence.errors:
        yield sentence


def _append(
    sentence: _Sentence, fields: list[str], width: int, layout: ColumnLayout, path: Path, number: int
) -> None:
    """Check one row and add it to the sentence."""
    if len(fields) < 2:
        raise DataError(
            "has a word but no label column; write word and tag with a tab between them.",
            path=path,
            line=number,
            reason="bad-row",
        )
    if len(fields) != width:
        raise DataError(
            f"has {len(fields)} columns where the first row of the file has {width}; "
            "the label column is missing, or a word holds a separator.",
            path=path,
            line=number,
            reason="bad-row",
        )
    try:
        word, tag = fields[layout.word_column], fields[layout.tag_column]
    except IndexError as error:
        raise DataError(
            f"has {width} columns; columns {layout.word_column} and {layout.tag_column} are asked for.",
            path=path,
            line=number,
            reason="bad-row",
        ) from error
    if not word:
        raise DataError("has a tag but no word.", path=path, line=number, reason="bad-row")
    split = split_tag(tag.strip(" "))
    if split is None:
        # The column may hold text, so only what has the shape of a tag may stand in the message.
        shown = f" ({tag!r} is none)" if re.fullmatch(r"[A-Z]-[A-Za-z_]{1,40}", tag) else ""
        raise DataError(
            f"column {layout.tag_column} holds no tag{shown}; "
            "a tag is O, or B-TYPE, I-TYPE, E-, S-, L- or U-TYPE.",
            path=path,
            line=number,
            reason="bad-tag",
        )
    sentence.words.append(word)
    sentence.tags.append(split)
    sentence.lines.append(number)


def _comment(line: str, counts: Counts) -> dict[str, str] | None:
    """Return what a comment line says (`{}` if nothing we use), or None if the line is a row."""
    found = _COMMENT.fullmatch(line)
    if found is not None and "\t" not in line:
        # CoNLL-U repeats the sentence as `# text = ...`: that is no field of the record.
        return {} if found[1] == "text" else {found[1]: found[2]}
    if "\t" in line or len(line.split(" ")) == 2:
        return None
    counts["ignored_comments"] += 1
    return {}


def _apply(context: _Context, comments: dict[str, str]) -> _Context:
    """Return the context after a block of comments; a new document forgets the one before."""
    if not comments:
        return context
    document = next((comments[key] for key in comments if key in _DOCUMENT_KEYS), None)
    base = context if document is None else _Context(document_id=document)
    columns = {k: v for k, v in comments.items() if k not in _DOCUMENT_KEYS and k != "patient_id"}
    return _Context(
        document_id=base.document_id,
        patient_id=comments.get("patient_id", base.patient_id),
        columns={**base.columns, **columns},
    )
