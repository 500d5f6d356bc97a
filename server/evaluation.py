"""Central evaluation of a saved model, and its predictions on plain text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from common.errors import InputError, ModelError, ValidationError
from common.feature_head import saved_features
from common.files import write_atomically
from common.ingestion import find_split, read_split
from common.labels import LabelSchema
from common.model import load_model, model_tags
from common.prediction import Encoding, predict_spans
from common.prediction import evaluate as evaluate_notes
from common.records import EntitySpan, Note
from common.text_files import read_text
from common.tokenization import load_tokenizer
from common.word_features import WordFeatures

_MAX_TOKENS = 256
_STRIDE = 64


def open_tagger(folder: Path, label_map: Iterable[str] = ()) -> tuple[nn.Module, Encoding]:
    """Open a saved model with what feeds it; the label schema is read from the model's own tags.

    Args:
        folder: A plain Hugging Face folder.
        label_map: `source=type` pairs for gold data with other labels.

    Raises:
        ModelError: The folder is not a token classifier with IOB2 tags.
    """
    model = load_model(folder)
    types = dict.fromkeys(tag[2:] for tag in model_tags(model) if tag.startswith("B-"))
    try:
        schema = LabelSchema(entity_types=tuple(types), mapping=_parse_map(label_map))
    except ValidationError as error:
        raise ModelError(f"{folder}: {error}") from None
    if schema.tags != model_tags(model):
        raise ModelError(
            f"{folder} has the tags {', '.join(model_tags(model))}, which are not IOB2 in fedward's order."
        )
    tokenizer = load_tokenizer(folder, local_files_only=True)
    positions = int(getattr(model.config, "max_position_embeddings", _MAX_TOKENS))
    max_tokens = min(_MAX_TOKENS, positions)
    features = saved_features(folder)
    return model, Encoding(
        tokenizer=tokenizer,
        schema=schema,
        max_tokens=max_tokens,
        stride=min(_STRIDE, max_tokens // 4),
        features=None if features is None else WordFeatures.open(features),
    )


def evaluate_folder(model: Path, data: Path, *, split: str, label_map: Iterable[str] = ()) -> dict[str, Any]:
    """Score a saved model on one split of a data folder.

    Raises:
        InputError: The model, the folder or a file in it cannot be used.
    """
    tagger, encoding = open_tagger(model, label_map)
    path = find_split(data, split)
    if path is None:
        raise InputError(f"{data} has no {split} split; it must hold a file or folder named {split}.")
    notes = list(read_split(path, encoding.schema, split=split))
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


def _parse_map(pairs: Iterable[str]) -> dict[str, str]:
    mapping = {}
    for pair in pairs:
        source, equals, target = pair.partition("=")
        if not equals or not source:
            raise InputError(f"--map {pair!r} is not of the form SOURCE=TYPE.")
        mapping[source] = target
    return mapping
