"""Central evaluation of a saved model, and its predictions on plain text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import write_atomically
from common.ingestion import find_split, read_annotated
from common.prediction import evaluate as evaluate_notes
from common.prediction import predict_spans
from common.records import EntitySpan, Note
from common.tagger import open_tagger
from common.text_files import read_text


def evaluate_folder(model: Path, data: Path, *, split: str, label_map: Iterable[str] = ()) -> dict[str, Any]:
    """Score a saved model on one split of a data folder.

    Raises:
        InputError: The model, the folder or a file in it cannot be used.
    """
    tagger, encoding = open_tagger(model, label_map)
    path = find_split(data, split)
    if path is None:
        raise InputError(f"{data} has no {split} split; it must hold a file or folder named {split}.")
    notes = read_annotated(path, encoding.schema, split=split)
    return evaluate_notes(tagger, notes, encoding).to_dict()


def predict_folder(model: Path, source: Path, out: Path) -> int:
    """Write the entities of plain texts as `spans.jsonl` and as `.txt` and `.ann` files; return their number.

    Raises:
        InputError: The model or a text cannot be used; nothing was written.
    """
    if out.resolve() in (source.resolve(), source.resolve().parent):
        raise InputError(
            f"{out} holds the texts themselves; give --out another folder, so that none is replaced."
        )
    tagger, encoding = open_tagger(model)
    notes = [Note(note_id=path.stem, text=read_text(path)) for path in _texts(source)]
    found = list(predict_spans(tagger, notes, encoding))
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "spans.jsonl", "".join(_json_line(note, spans) for note, spans in found))
    for note, spans in found:
        write_atomically(out / f"{note.note_id}.txt", note.text)
        write_atomically(out / f"{note.note_id}.ann", brat_lines(note, spans))
    return sum(len(spans) for _, spans in found)


def brat_lines(note: Note, spans: Sequence[EntitySpan]) -> str:
    """Return BRAT's lines for spans; a span over line breaks is written in fragments, as BRAT demands."""
    return "".join(
        f"T{i}\t{span.label} {_fragments(note.text, span)}\n" for i, span in enumerate(spans, start=1)
    )


def _fragments(text: str, span: EntitySpan) -> str:
    """Return the offsets of a span, cut at line breaks, and the words they cover."""
    pieces: list[tuple[int, int]] = []
    start = span.start
    for line in text[span.start : span.end].splitlines(keepends=True):
        end = start + len(line.rstrip("\r\n"))
        if end > start:
            pieces.append((start, end))
        start += len(line)
    offsets = ";".join(f"{start} {end}" for start, end in pieces)
    return f"{offsets}\t{' '.join(text[start:end] for start, end in pieces)}"


def _json_line(note: Note, spans: Sequence[EntitySpan]) -> str:
    rows = [
        {"start": s.start, "end": s.end, "label": s.label, "text": note.text[s.start : s.end]} for s in spans
    ]
    return json.dumps({"id": note.note_id, "spans": rows}, ensure_ascii=False) + "\n"


def _texts(source: Path) -> list[Path]:
    """Return the text files of a path."""
    if source.is_file():
        return [source]
    files = sorted(source.glob("*.txt")) if source.is_dir() else []
    if not files:
        raise InputError(f"{source} is neither a text file nor a folder with .txt files.")
    return files
