"""Which labels look wrong: cross-validated confidence of a light classifier in the labels that are there.

Method
------
Confident learning (Northcutt, Jiang & Chuang 2021, JAIR 70, section 3) over words. A word's class is its entity
type or none. A softmax regression on hashed features (the word, its ends and shape, two neighbours each side) is
fitted k times, each time without one fold of whole units, and tells the probabilities of the fold that it has not seen.
A class's threshold is the mean probability of that class over the words that are labelled with it. A word labelled `i`
is suspicious if another class `j` passes its threshold and is the most likely; neighbouring suspicious words of the
same `i` and `j` are one candidate, ranked by the mean of `p(j) - p(i)`.

A candidate is a question to an annotator, no verdict: rare spellings and labels that need the whole sentence look
wrong to a classifier that sees five words.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from common.labels import LabelSchema
from common.records import Note
from common.seeding import torch_seed
from common.tokenization import gold_tags, words_of

NONE = ""
"""The class of words in no entity."""

_BUCKETS = 1 << 17
_FEATURES = 11
_EPOCHS = 3
_BATCH = 2048
_CONTEXT = 40
_LEAST_CONFIDENCE = 0.6


@dataclass(frozen=True, kw_only=True, slots=True)
class Suspicion:
    """Words whose label looks wrong.

    Attributes:
        note_id: Their note.
        start: First character.
        end: One past the last.
        given: The label they have, "" for none.
        suggested: The label that the classifier expects, "" for none.
        margin: Mean of `p(suggested) - p(given)`, 0 to 1.
        excerpt: The words with some text around them, in three parts; never leaves the site.
    """

    note_id: str
    start: int
    end: int
    given: str
    suggested: str
    margin: float
    excerpt: tuple[str, str, str] = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelCheck:
    """The outcome.

    Attributes:
        words: Words that were looked at.
        candidates: The suspicious places, the most suspicious first.
        agreement: Share of entity words whose label the classifier expects too; None without entities.
    """

    words: int
    candidates: tuple[Suspicion, ...] = field(repr=False)
    agreement: float | None


def check_labels(
    notes: Sequence[Note],
    units: Sequence[str],
    schema: LabelSchema,
    *,
    folds: int = 4,
    most_words: int = 200_000,
    seed: int = 13,
) -> LabelCheck:
    """Return the labels that look wrong.

    Args:
        notes: Notes with gold spans.
        units: The unit of each note; a unit is in one fold as a whole.
        schema: The entity types.
        folds: How many times the classifier is fitted.
        most_words: Notes beyond so many words are left out.
        seed: Of the fits, so that the report can be repeated.
    """
    kept = list(_first(notes, most_words))
    classes = (NONE, *schema.entity_types)
    if not kept:
        return LabelCheck(words=0, candidates=(), agreement=None)
    features = np.concatenate([_features(note) for note in kept])
    labels = np.concatenate([_classes(note, schema) for note in kept])
    fold_of_note = [_fold(unit, folds) for unit in units[: len(kept)]]
    fold_of_word = np.repeat(fold_of_note, [len(words_of(note)) for note in kept])
    probabilities = _out_of_fold(features, labels, fold_of_word, len(classes), seed)
    suspicious, expected = _suspicious(probabilities, labels)
    candidates = sorted(
        _candidates(kept, labels, suspicious, expected, probabilities, classes), key=lambda one: -one.margin
    )
    inside = labels > 0
    agreement = float((probabilities.argmax(axis=1) == labels)[inside].mean()) if inside.any() else None
    return LabelCheck(words=len(labels), candidates=tuple(candidates), agreement=agreement)


def _first(notes: Sequence[Note], most_words: int) -> Iterator[Note]:
    """Yield notes up to so many words, one at least."""
    total = 0
    for note in notes:
        yield note
        total += len(words_of(note))
        if total >= most_words:
            return


def _fold(unit: str, folds: int) -> int:
    """Return the fold of a unit, whatever stands beside it."""
    return int.from_bytes(hashlib.sha256(unit.encode()).digest()[:4], "big") % folds


def _classes(note: Note, schema: LabelSchema) -> NDArray[np.int64]:
    """Return the class of each word, `(words,)`: 0 for none, k + 1 for the k-th entity type."""
    return (np.asarray(gold_tags(note, schema).tag_ids, dtype=np.int64) + 1) // 2


def _features(note: Note) -> NDArray[np.int64]:
    """Return hashed features, `(words, features)`."""
    words = [note.text[start:end] for start, end in words_of(note)]
    folded = ["", "", *(word.casefold() for word in words), "", ""]
    rows = np.zeros((len(words), _FEATURES), dtype=np.int64)
    for i, word in enumerate(words):
        two_before, before, this, after, two_after = folded[i : i + 5]
        facts = (
            f"w={this}",
            f"W={word}",
            f"p3={this[:3]}",
            f"s3={this[-3:]}",
            f"s4={this[-4:]}",
            f"h={_shape(word)}",
            f"-1={before}",
            f"+1={after}",
            f"-2={two_before}",
            f"+2={two_after}",
            f"-1w={before} {this}",
        )
        rows[i] = [zlib.crc32(fact.encode("utf-8", "surrogatepass")) % _BUCKETS for fact in facts]
    return rows


def _shape(word: str) -> str:
    """Return the kinds of a word's signs, runs of one kind once."""
    kinds = ["X" if c.isupper() else "x" if c.islower() else "d" if c.isdigit() else c for c in word[:12]]
    return "".join(kind for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1])


def _out_of_fold(
    features: NDArray[np.int64], labels: NDArray[np.int64], folds: NDArray[np.int64], classes: int, seed: int
) -> NDArray[np.float32]:
    """Return `(words, classes)` probabilities, each of a classifier that has not seen the word's unit."""
    probabilities = np.full((len(labels), classes), 1.0 / classes, dtype=np.float32)
    for fold in np.unique(folds):
        inside = folds == fold
        if inside.all():
            continue
        # Said out loud, because torch warns of sparse gradients otherwise.
        unchecked = torch.sparse.check_sparse_tensor_invariants(enable=False)  # type: ignore[no-untyped-call]
        with torch_seed(seed, f"label check {fold}"), unchecked:
            model = _fit(torch.from_numpy(features[~inside]), torch.from_numpy(labels[~inside]), classes)
        with torch.inference_mode():
            for part in np.array_split(np.flatnonzero(inside), max(1, int(inside.sum()) // 65_536)):
                scores = model(torch.from_numpy(features[part]))
                probabilities[part] = torch.softmax(scores, dim=1).numpy()
    return probabilities


def _fit(features: torch.Tensor, labels: torch.Tensor, classes: int) -> nn.EmbeddingBag:
    """Fit a softmax regression on hashed features."""
    model = nn.EmbeddingBag(_BUCKETS, classes, mode="sum", sparse=True)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    for _ in range(_EPOCHS):
        for part in torch.split(torch.randperm(len(labels)), _BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(features[part]), labels[part])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model


def _suspicious(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return which words look wrong, and the class that each is expected to be of, `(words,)` both."""
    own = probabilities[np.arange(len(labels)), labels]
    # Northcutt et al. 2021, equation 2; no class is believed on less than an even chance.
    thresholds = [
        max(_LEAST_CONFIDENCE, float(own[labels == k].mean())) if (labels == k).any() else 1.0
        for k in range(probabilities.shape[1])
    ]
    expected = probabilities.argmax(axis=1)
    sure = probabilities.max(axis=1) >= np.asarray(thresholds)[expected]
    return (expected != labels) & sure, expected


def _candidates(
    notes: Sequence[Note],
    labels: NDArray[np.int64],
    suspicious: NDArray[np.bool_],
    expected: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    classes: Sequence[str],
) -> Iterator[Suspicion]:
    """Yield each run of suspicious words."""
    base = 0
    for note in notes:
        words = words_of(note)
        place = 0
        while place < len(words):
            i = base + place
            if not suspicious[i]:
                place += 1
                continue
            last = place
            while (
                last + 1 < len(words)
                and suspicious[base + last + 1]
                and labels[base + last + 1] == labels[i]
                and expected[base + last + 1] == expected[i]
            ):
                last += 1
            run = slice(i, base + last + 1)
            margin = float((probabilities[run, expected[i]] - probabilities[run, labels[i]]).mean())
            start, end = words[place][0], words[last][1]
            yield Suspicion(
                note_id=note.note_id,
                start=start,
                end=end,
                given=classes[labels[i]],
                suggested=classes[expected[i]],
                margin=margin,
                excerpt=(
                    note.text[max(0, start - _CONTEXT) : start],
                    note.text[start:end],
                    note.text[end : end + _CONTEXT],
                ),
            )
            place = last + 1
        base += len(words)
