"""PubTator: blocks of `ID|t|title`, `ID|a|abstract` and tab-separated mentions, a blank line between them.

A note is title and abstract with one line end between them, which is how the offsets count. Relations (rows
of four fields) are counted and left. Of nested mentions the outermost is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from common.annotations import SourceSpan
from common.errors import DataError
from common.ingestion_jsonl import require_records
from common.ingestion_records import Place, Reading, require_note_text
from common.records import Note
from common.text_files import read_lines

TEXT_LINE = re.compile(r"([^|\t]{1,80})\|([ta])\|(.*)")
_RELATION_FIELDS = 4
_MENTION_FIELDS = 5

_Lines = list[tuple[int, str]]


def pubtator_notes(path: Path, reading: Reading) -> Iterator[Note]:
    """Yield the notes of one file, block by block.

    Raises:
        DataError: The file or a block is not usable, and nobody listens to rejects.
    """
    records = 0
    for lines, damage in _blocks(path, reading):
        records += 1
        place = Place(path=path, line=lines[0][0] if lines else damage[0].line or 1)
        name = lines[0][1].partition("|")[0] if lines and TEXT_LINE.fullmatch(lines[0][1]) else None
        try:
            for error in damage:
                raise error
            note = _note(lines, reading, place)
        except DataError as error:
            reading.refuse(error, note_id=name)
            continue
        yield reading.counted(note)
    require_records(records, path, reading)


def _blocks(path: Path, reading: Reading) -> Iterator[tuple[_Lines, list[DataError]]]:
    """Yield the lines of each block, and the errors of lines that are not UTF-8."""
    block, damage = _Lines(), list[DataError]()
    for line, content in read_lines(path, on_error=damage.append if reading.on_reject else None):
        if content.strip():
            block.append((line, content))
        elif block or damage:
            yield block, list(damage)
            block = []
            damage.clear()
    if block or damage:
        yield block, list(damage)


def _note(lines: _Lines, reading: Reading, place: Place) -> Note:
    """Build the note of one block."""
    texts = [found for _, content in lines if (found := TEXT_LINE.fullmatch(content))]
    ids = {found[1] for found in texts}
    kinds = [found[2] for found in texts]
    if len(ids) != 1 or kinds not in (["t", "a"], ["t"], ["a"]):
        raise place.error(
            "begins no PubTator block; it must have ID|t|title and then ID|a|abstract of one ID.", "bad-block"
        )
    document_id = texts[0][1]
    text = require_note_text("\n".join(found[3] for found in texts), place)
    note_id = reading.claim(document_id, place)
    rows = [(number, content) for number, content in lines if not TEXT_LINE.fullmatch(content)]
    found_spans = [_mention(number, row, document_id, text, reading, place.path) for number, row in rows]
    return Note(
        note_id=note_id,
        text=text,
        spans=reading.spans(found_spans, place, allow_nested=True),
        document_id=document_id,
    )


def _mention(
    line: int, row: str, document_id: str, text: str, reading: Reading, path: Path
) -> SourceSpan | None:
    """Return the span of one row, or None where it is no entity of ours."""
    place, fields = Place(path=path, line=line), row.split("\t")
    if len(fields) == _RELATION_FIELDS and not fields[1].isdigit():
        reading.counts["ignored_annotations"] += 1
        return None
    if len(fields) < _MENTION_FIELDS or fields[0] != document_id:
        raise place.error(
            "is no mention of this block; it must read ID, START, END, mention and TYPE with tabs between them.",
            "bad-annotation",
        )
    start, end = (int(field) if field.isdecimal() else -1 for field in fields[1:3])
    span = reading.span("mention", start, end, fields[4], text, place)
    if text[start:end].split() != fields[3].split():
        raise place.error(
            f"field mention is not what the note has at [{start}, {end}); offsets count characters of title, "
            "one line end and abstract.",
            "bad-span",
        )
    return span
