"""Counts of entities and tags that can be added over notes, sites and rounds, and the scores made of them.

Sum first, divide once at the end: precision, recall and F1 are computed from the summed counts alone, so
the scores of a federation are those of its pooled predictions. Entity scores agree exactly with seqeval 1.2.2
in strict mode under IOB2 (`classification_report(mode="strict", scheme=IOB2)`, zero divisions give 0):
an entity counts as found only if type, first and last word are all right.

The token table counts every word under its tag, `O` included. It looks better than the entity scores do (most
words are `O`), and serves to see where the tags are confused, not to compare models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from common.errors import ValidationError
from common.labels import LabelSchema


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """True positives, false positives and false negatives of one class."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: Tally) -> Tally:
        """Sum the counts."""
        return Tally(tp=self.tp + other.tp, fp=self.fp + other.fp, fn=self.fn + other.fn)

    @property
    def support(self) -> int:
        """How many gold items the class has."""
        return self.tp + self.fn

    @property
    def is_seen(self) -> bool:
        """Whether the class occurs, in gold or in predictions."""
        return self.tp + self.fp + self.fn > 0

    def scores(self) -> Scores:
        """Return precision, recall and F1; 0 where a denominator is 0."""
        precision = _divide(self.tp, self.tp + self.fp)
        recall = _divide(self.tp, self.support)
        f1 = _divide(2 * precision * recall, precision + recall)
        return Scores(precision=precision, recall=recall, f1=f1, support=self.support)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Precision, recall and F1 in `[0, 1]`, and the number of gold items."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreTable:
    """Scores per class and their averages.

    Attributes:
        per_class: Every class of the schema, also those that never occur.
        micro: Of the summed counts.
        macro: The plain mean over the classes that occur in gold or predictions, as in seqeval.
        weighted: The mean over classes, weighted by support.
    """

    per_class: Mapping[str, Scores]
    micro: Scores
    macro: Scores
    weighted: Scores

    def to_dict(self) -> dict[str, object]:
        """Return plain dicts and numbers, for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ClassCounts(ABC):
    """Tallies of named classes; two of them over the same classes can be added.

    Attributes:
        tallies: One tally per class, in a fixed order.
    """

    tallies: Mapping[str, Tally]

    @staticmethod
    @abstractmethod
    def class_names(schema: LabelSchema) -> tuple[str, ...]:
        """Return the classes in the order of the vector."""

    @classmethod
    def zeros(cls, schema: LabelSchema) -> Self:
        """Return counts of nothing, the neutral element of `+`."""
        return cls(tallies={name: Tally() for name in cls.class_names(schema)})

    def __add__(self, other: Self) -> Self:
        """Sum class by class.

        Raises:
            ValidationError: The two count different classes.
        """
        if type(other) is not type(self) or tuple(self.tallies) != tuple(other.tallies):
            raise ValidationError(
                "counts of different classes cannot be added; use one schema and one kind of count."
            )
        return type(self)(tallies={name: tally + other.tallies[name] for name, tally in self.tallies.items()})

    def scores(self) -> ScoreTable:
        """Divide once: scores per class, micro, macro and weighted."""
        per_class = {name: tally.scores() for name, tally in self.tallies.items()}
        seen = [per_class[name] for name, tally in self.tallies.items() if tally.is_seen]
        total = sum(self.tallies.values(), Tally())
        return ScoreTable(
            per_class=per_class,
            micro=total.scores(),
            macro=_average(seen, [1] * len(seen), total.support),
            weighted=_average(seen, [scores.support for scores in seen], total.support),
        )

    def to_vector(self, schema: LabelSchema) -> NDArray[np.float32]:
        """Return `(3 * classes,)` counts, class after class as tp, fp, fn: what rides in a masked update.

        float32 holds whole numbers exactly up to 2^24.
        """
        self._require(schema)
        rows = [(tally.tp, tally.fp, tally.fn) for tally in self.tallies.values()]
        return np.asarray(rows, dtype=np.float32).reshape(-1)

    @classmethod
    def from_vector(cls, vector: NDArray[np.floating], schema: LabelSchema) -> Self:
        """Return the counts of a vector made by `to_vector`, or of a sum of such vectors, rounded.

        Raises:
            ValidationError: The vector has another length, or values that are no counts.
        """
        names = cls.class_names(schema)
        if vector.shape != (3 * len(names),):
            raise ValidationError(f"a count vector has shape {vector.shape}; it must be ({3 * len(names)},).")
        rounded = np.rint(vector.astype(np.float64))
        if not np.isfinite(rounded).all() or (rounded < 0).any():
            raise ValidationError("a count vector holds values that are negative or not finite.")
        rows = rounded.astype(np.int64).reshape(-1, 3).tolist()
        return cls(
            tallies={name: Tally(tp=tp, fp=fp, fn=fn) for name, (tp, fp, fn) in zip(names, rows, strict=True)}
        )

    def to_dict(self) -> dict[str, dict[str, int]]:
        """Return plain dicts and numbers, for JSON."""
        return {name: asdict(tally) for name, tally in self.tallies.items()}

    def _require(self, schema: LabelSchema) -> None:
        """Raise unless the counts are of this schema."""
        if tuple(self.tallies) != self.class_names(schema):
            raise ValidationError("counts are of another schema.")


@dataclass(frozen=True, kw_only=True)
class EntityCounts(ClassCounts):
    """Counts per entity type: an entity is right if type, first and last word are."""

    @staticmethod
    def class_names(schema: LabelSchema) -> tuple[str, ...]:
        """Return the entity types."""
        return schema.entity_types


@dataclass(frozen=True, kw_only=True)
class TokenCounts(ClassCounts):
    """Counts per tag, `O` included: each word counts once under its gold and its predicted tag."""

    @staticmethod
    def class_names(schema: LabelSchema) -> tuple[str, ...]:
        """Return the tags."""
        return schema.tags


def count_entities(pairs: Iterable[tuple[Sequence[int], Sequence[int]]], schema: LabelSchema) -> EntityCounts:
    """Compare gold and predicted tags note by note.

    Args:
        pairs: `(gold, predicted)` IOB2 tag ids of each note's words, `(words,)` each.
        schema: The tag ids.

    Raises:
        ValidationError: A pair differs in length, or an id is not in the schema.
    """
    right, gold_only, predicted_only = Counter[str](), Counter[str](), Counter[str]()
    for gold, predicted in pairs:
        _require_same_length(gold, predicted)
        wanted, found = set(schema.tags_to_chunks(gold)), set(schema.tags_to_chunks(predicted))
        right.update(chunk[2] for chunk in wanted & found)
        gold_only.update(chunk[2] for chunk in wanted - found)
        predicted_only.update(chunk[2] for chunk in found - wanted)
    return EntityCounts(
        tallies={
            name: Tally(tp=right[name], fp=predicted_only[name], fn=gold_only[name])
            for name in schema.entity_types
        }
    )


def count_tokens(pairs: Iterable[tuple[Sequence[int], Sequence[int]]], schema: LabelSchema) -> TokenCounts:
    """Compare gold and predicted tags word by word; arguments as in `count_entities`."""
    seen = Counter[tuple[int, int]]()
    for gold, predicted in pairs:
        _require_same_length(gold, predicted)
        seen.update(zip(map(int, gold), map(int, predicted), strict=True))
    confusion = np.zeros((schema.num_tags, schema.num_tags), dtype=np.int64)
    for (wanted, found), number in seen.items():
        if not (0 <= wanted < schema.num_tags and 0 <= found < schema.num_tags):
            raise ValidationError(f"tag id {max(wanted, found)} is not in the schema.")
        confusion[wanted, found] = number
    right = np.diagonal(confusion)
    rows = zip(
        schema.tags,
        right.tolist(),
        (confusion.sum(axis=0) - right).tolist(),
        (confusion.sum(axis=1) - right).tolist(),
        strict=True,
    )
    return TokenCounts(tallies={tag: Tally(tp=tp, fp=fp, fn=fn) for tag, tp, fp, fn in rows})


def _divide(numerator: float, denominator: float) -> float:
    """Return the quotient, or 0 where nothing can be divided."""
    return numerator / denominator if denominator else 0.0


def _average(rows: Sequence[Scores], weights: Sequence[int], support: int) -> Scores:
    """Return the weighted mean of scores, or 0 where all weights are 0."""
    total = sum(weights)
    precision, recall, f1 = (
        _divide(sum(w * getattr(row, name) for row, w in zip(rows, weights, strict=True)), total)
        for name in ("precision", "recall", "f1")
    )
    return Scores(precision=precision, recall=recall, f1=f1, support=support)


def _require_same_length(gold: Sequence[int], predicted: Sequence[int]) -> None:
    """Raise unless there is one prediction per word."""
    if len(gold) != len(predicted):
        raise ValidationError(
            f"{len(predicted)} predicted tags for {len(gold)} words; there must be one per word."
        )
