"""What a site's data is like: the facts of its quality report, all of them private, as plain values.

Everything is counted by the plan's schema and on fixed scales, so that two sites' reports can be laid side by side.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from client.quality_duplicates import count_duplicates
from client.quality_labels import LabelCheck, check_labels
from client.quality_privacy import support
from common.errors import DataError
from common.ingestion import Dataset
from common.labels import LabelSchema
from common.overlap import overlapping
from common.prediction import Encoding
from common.records import Note
from common.tokenization import gold_tags, words_of

LENGTH_BINS = (1, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
"""Words of a note: each bin begins at its number, and the last one is open."""

UNITS_BINS = (1, 2, 3, 5, 10, 20, 50)
"""Notes of a patient or document, likewise."""

SPLITS = ("train", "devel", "test")
_PERCENTILES = (10, 50, 90)


@dataclass(frozen=True, kw_only=True)
class QualityReport:
    """A site's report; `facts` are numbers and names, `labels` quotes the notes.

    Attributes:
        site: The site's name.
        facts: JSON values without text of notes.
        labels: The labels that look wrong, with excerpts: for the site's own page alone.
    """

    site: str
    facts: Mapping[str, Any] = field(repr=False)
    labels: LabelCheck = field(repr=False)


def examine(
    site: str,
    data: Dataset,
    encoding: Encoding,
    *,
    plan_hash: str = "",
    on_step: Callable[[str], None] = lambda step: None,
) -> QualityReport:
    """Look at a data set.

    Args:
        site: The site's name.
        data: Its splits.
        encoding: The plan's schema, windows and tokenizer.
        plan_hash: Of the plan that the schema is from.
        on_step: Told what is being looked at, for progress.

    Raises:
        DataError: There are no training notes.
    """
    if not data.train:
        raise DataError(f"site {site} has no training notes, so there is nothing to report on.")
    splits = {name: getattr(data, name) for name in SPLITS if getattr(data, name)}
    schema = encoding.schema
    on_step("sizes and lengths")
    facts: dict[str, Any] = {
        "version": 1,
        "site": site,
        "plan_hash": plan_hash,
        "entity_types": list(schema.entity_types),
        "splits": {name: _sizes(notes, schema) for name, notes in splits.items()},
        "lengths": binned([len(words_of(note)) for notes in splits.values() for note in notes], LENGTH_BINS),
        "labels": _labels([note for notes in splits.values() for note in notes], schema),
        "units": _units(data.train),
    }
    on_step("word pieces")
    facts["encoder"] = _pieces(data.train, encoding)
    on_step("duplicates and leakage")
    facts["duplicates"] = {name: _duplicates(notes) for name, notes in splits.items()}
    facts["leakage"] = _leakage(splits)
    on_step("privacy")
    facts["privacy"] = [support(unit, ids).to_dict() for unit, ids in unit_ids(data.train).items()]
    on_step("labels that look wrong")
    labels = check_labels(data.train, next(reversed(unit_ids(data.train).values())), schema)
    facts["label_check"] = {
        "words": labels.words,
        "candidates": len(labels.candidates),
        "agreement": labels.agreement,
        "by_change": _changes(labels),
    }
    return QualityReport(site=site, facts=facts, labels=labels)


def binned(values: Sequence[int], bins: Sequence[int]) -> dict[str, int]:
    """Return how many values are in each bin, by the bin's name; every bin is there."""
    counts: list[int] = [0] * (len(bins) + 1)
    for value in values:
        counts[bisect_right(bins, value)] += 1
    names = [f"{low}-{high - 1}" if high - 1 > low else f"{low}" for low, high in pairwise(bins)]
    return {"0": counts[0], **dict(zip([*names, f"{bins[-1]}+"], counts[1:], strict=True))}


def unit_ids(notes: Sequence[Note]) -> dict[str, list[str]]:
    """Return the notes' ids for each unit that all of them have, smallest unit first."""
    found: dict[str, list[str | None]] = {
        "record": [note.note_id for note in notes],
        "document": [note.document_id for note in notes],
        "patient": [note.patient_id for note in notes],
    }
    return {unit: [i for i in ids if i is not None] for unit, ids in found.items() if None not in ids}


def _sizes(notes: Sequence[Note], schema: LabelSchema) -> dict[str, Any]:
    """Return the sizes of one split, and how its spans met the words."""
    tags = [gold_tags(note, schema) for note in notes]
    lengths = np.asarray([len(tag.tag_ids) for tag in tags])
    return {
        "notes": len(notes),
        "words": int(lengths.sum()),
        "characters": sum(len(note.text) for note in notes),
        "mentions": sum(len(note.spans) for note in notes),
        "notes_without_mentions": sum(not note.spans for note in notes),
        "words_percentiles": {str(p): float(np.percentile(lengths, p)) for p in _PERCENTILES},
        "spans_widened": sum(tag.num_widened for tag in tags),
        "spans_lost": sum(tag.num_lost for tag in tags),
        **{f"{unit}s": len(set(ids)) for unit, ids in unit_ids(notes).items() if unit != "record"},
    }


def _labels(notes: Sequence[Note], schema: LabelSchema) -> dict[str, Any]:
    """Return each type's mentions, units that have it, distinct mentions, and rate per 1,000 words."""
    mentions = Counter[str]()
    holders: dict[str, set[str]] = defaultdict(set)
    texts: dict[str, set[str]] = defaultdict(set)
    unit, ids = next(reversed(unit_ids(notes).items()))
    for note, holder in zip(notes, ids, strict=True):
        for span in note.spans:
            mentions[span.label] += 1
            holders[span.label].add(holder)
            texts[span.label].add(note.text[span.start : span.end].casefold())
    words = sum(len(words_of(note)) for note in notes)
    total = sum(mentions.values())
    return {
        "unit": unit,
        "words": words,
        "per_type": {
            name: {
                "mentions": mentions[name],
                "units": len(holders[name]),
                "distinct": len(texts[name]),
                "share": mentions[name] / total if total else 0.0,
                "per_thousand_words": 1000 * mentions[name] / words if words else 0.0,
            }
            for name in schema.entity_types
        },
    }


def _units(notes: Sequence[Note]) -> dict[str, Any]:
    """Return how many notes each document and patient has."""
    return {
        unit: {"units": len(set(ids)), "notes_per_unit": binned(list(Counter(ids).values()), UNITS_BINS)}
        for unit, ids in unit_ids(notes).items()
        if unit != "record"
    }


def _pieces(notes: Sequence[Note], encoding: Encoding) -> dict[str, Any]:
    """Return how the encoder's vocabulary fits: pieces per word, unknown pieces, windows and what they cut."""
    tokenizer = encoding.tokenizer
    words = cut = unknown = pieces = windows = notes_cut = 0
    special = tokenizer.num_special_tokens_to_add()
    capacity = encoding.max_tokens - special
    for start in range(0, len(notes), 256):
        chunk = notes[start : start + 256]
        spelled = [[note.text[a:b] for a, b in words_of(note)] for note in chunk]
        encoded = tokenizer(spelled, is_split_into_words=True, add_special_tokens=False, verbose=False)
        for ids, texts in zip(encoded["input_ids"], spelled, strict=True):
            words += len(texts)
            pieces += len(ids)
            unknown += sum(piece == tokenizer.unk_token_id for piece in ids)
            cut += max(0, len(ids) - capacity)
            notes_cut += len(ids) > capacity
        windows += len(encoding.examples(chunk))
    return {
        "pieces": pieces,
        "pieces_per_word": pieces / words if words else 0.0,
        "unknown_share": unknown / pieces if pieces else 0.0,
        "max_tokens": encoding.max_tokens,
        "windows": windows,
        "notes_longer_than_a_window": notes_cut,
        "pieces_beyond_first_window": cut,
        "pieces_beyond_share": cut / pieces if pieces else 0.0,
    }


def _duplicates(notes: Sequence[Note]) -> dict[str, int]:
    """Return how many notes repeat an earlier one of their split."""
    found = count_duplicates(notes)
    return {"notes": found.notes, "exact": found.exact, "near": found.near}


def _leakage(splits: Mapping[str, Sequence[Note]]) -> dict[str, dict[str, int]]:
    """Return how many notes, documents and patients of the later splits are in an earlier one as well."""
    names = list(splits)
    return {
        f"{later} in {earlier}": {
            "notes": len(overlapping(splits[later], splits[earlier])),
            **_shared_units(splits[later], splits[earlier]),
        }
        for i, earlier in enumerate(names)
        for later in names[i + 1 :]
    }


def _shared_units(later: Sequence[Note], earlier: Sequence[Note]) -> dict[str, int]:
    """Return how many patients are on both sides; ids of documents may be counted anew in each split."""
    mine, theirs = (unit_ids(notes).get("patient") for notes in (later, earlier))
    return {} if mine is None or theirs is None else {"patients": len(set(mine) & set(theirs))}


def _changes(labels: LabelCheck) -> dict[str, int]:
    """Return how often which label would become which, the most frequent first."""
    changes = Counter(f"{one.given or 'none'} → {one.suggested or 'none'}" for one in labels.candidates)
    return dict(changes.most_common())
