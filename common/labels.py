"""Entity types, their IOB2 tags, and the way between character spans and word tags.

Tags inside fedward are always IOB2 (`B-X` opens an entity, `I-X` goes on with it, `O` is outside), and
are read strictly: `I-X` that follows neither `B-X` nor `I-X` is no entity. `common.metrics` and the
stitching of predictions share that reading, so what is scored is what is written. The lenient reading
of the tags of foreign files is in `common.tag_schemes`.

Borders: a word belongs to an entity if the two overlap by at least one character. A span that ends
inside a word is therefore widened to the word's border in training, and counted. A word that two
spans share goes to the one that starts first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from common.errors import ValidationError
from common.records import EntitySpan
from common.validation import nearest

OUTSIDE = "O"
OUTSIDE_ID = 0

# A chunk is `(first word, last word + 1, label)`.
Chunk = tuple[int, int, str]


@dataclass(frozen=True, kw_only=True)
class LabelSchema:
    """The entity types that a plan declares, and how the labels of a data source map to them.

    Tag ids are `O` = 0, then `B-X` = 2k + 1 and `I-X` = 2k + 2 for the k-th entity type.

    Attributes:
        entity_types: The types, in the plan's order; at least one, without repetition.
        mapping: Source label -> entity type, or -> "" to drop the label on purpose. A label that is not
            mapped must itself be an entity type.

    Raises:
        ValidationError: No types, a repeated or unusable name, or a mapping to an unknown type.
    """

    entity_types: tuple[str, ...]
    mapping: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check names and targets."""
        if not isinstance(self.entity_types, tuple) or not self.entity_types:
            raise ValidationError("entity_types is empty; it must list at least one entity type.")
        for name in self.entity_types:
            _require_label("entity_types", name)
        if len(set(self.entity_types)) != len(self.entity_types):
            raise ValidationError(
                f"entity_types {list(self.entity_types)} repeats a type; list each type once."
            )
        for source, target in self.mapping.items():
            _require_label("mapping", source)
            if target and target not in self.entity_types:
                raise ValidationError(
                    f"mapping sends {source!r} to {target!r}; the target must be one of "
                    f"{', '.join(self.entity_types)}, or empty to drop the label."
                )

    @cached_property
    def tags(self) -> tuple[str, ...]:
        """All tags in the order of their ids."""
        return (OUTSIDE, *(f"{prefix}-{name}" for name in self.entity_types for prefix in "BI"))

    @cached_property
    def tag_ids(self) -> Mapping[str, int]:
        """Tag -> id; also what a Hugging Face config calls `label2id`."""
        return {tag: number for number, tag in enumerate(self.tags)}

    @property
    def num_tags(self) -> int:
        """The width of a classifier's last layer, `2 * types + 1`."""
        return 2 * len(self.entity_types) + 1

    def tag_id(self, tag: str) -> int:
        """Return the id of an IOB2 tag.

        Raises:
            ValidationError: The tag is not in the schema.
        """
        found = self.tag_ids.get(tag)
        if found is None:
            hint = nearest(tag, self.tags)
            raise ValidationError(
                f"tag {_shorten(tag)} is not in the schema; its tags are {', '.join(self.tags)}."
                + (f" Did you mean {hint!r}?" if hint else "")
            )
        return found

    def resolve(self, label: str) -> str:
        """Return the entity type of a source label, or "" where the mapping drops it on purpose.

        Raises:
            ValidationError: The label is neither mapped nor an entity type.
        """
        if label in self.mapping:
            return self.mapping[label]
        if label in self._types:
            return label
        known = ", ".join((*self.entity_types, *self.mapping))
        raise ValidationError(
            f"label {_shorten(label)} is not in the schema ({known}); "
            "add it to the plan's entity types, or map it to one of them, or to '' to drop it."
        )

    @cached_property
    def _types(self) -> frozenset[str]:
        """The entity types as a set."""
        return frozenset(self.entity_types)

    def chunks_to_tags(self, chunks: Iterable[Chunk], num_words: int) -> list[int]:
        """Return the tag ids `(words,)` of disjoint chunks whose labels are entity types."""
        tags = [OUTSIDE_ID] * num_words
        for first, end, label in chunks:
            begin = self.tag_id(f"B-{label}")
            tags[first:end] = [begin] + [begin + 1] * (end - first - 1)
        return tags

    def tags_to_chunks(self, tag_ids: Sequence[int]) -> list[Chunk]:
        """Return the entities of IOB2 tag ids `(words,)`, read strictly, in order.

        Raises:
            ValidationError: An id is outside `[0, num_tags)`.
        """
        chunks: list[Chunk] = []
        first, inside = -1, -1
        for index, tag in enumerate(tag_ids):
            if not 0 <= tag < self.num_tags:
                raise ValidationError(
                    f"tag id {tag} is not in the schema; ids go from 0 to {self.num_tags - 1}."
                )
            if first >= 0 and tag != inside:
                chunks.append((first, index, self.entity_types[inside // 2 - 1]))
                first, inside = -1, -1
            if tag % 2 == 1:
                first, inside = index, tag + 1
        if first >= 0:
            chunks.append((first, len(tag_ids), self.entity_types[inside // 2 - 1]))
        return chunks


@dataclass(frozen=True, kw_only=True, slots=True)
class WordTags:
    """The tags of one note's words, and how its spans fared.

    Attributes:
        tag_ids: One IOB2 tag id per word, `(words,)`.
        num_spans: Spans that were given.
        num_widened: Spans with a border inside a word; they now reach to the word's border.
        num_lost: Spans that got no word, because they cover none or an earlier span took it.
    """

    tag_ids: list[int] = field(repr=False)
    num_spans: int = 0
    num_widened: int = 0
    num_lost: int = 0


def spans_to_tags(
    spans: Sequence[EntitySpan], words: Sequence[tuple[int, int]], schema: LabelSchema
) -> WordTags:
    """Give every word the tag of the span that it overlaps, in linear time.

    Args:
        spans: Disjoint spans in order of `start`, labelled with entity types.
        words: Character offsets `[start, end)` in order.
        schema: The tag ids.

    Raises:
        ValidationError: Spans overlap or are out of order, or a label is not an entity type.
    """
    chunks: list[Chunk] = []
    widened, word, previous_end = 0, 0, 0
    for span in spans:
        if span.start < previous_end or span.end <= span.start:
            raise ValidationError("spans must not be empty, must be in order of start and must not overlap.")
        previous_end = span.end
        while word < len(words) and words[word][1] <= span.start:
            word += 1
        first = word
        while word < len(words) and words[word][0] < span.end:
            word += 1
        if word > first:
            chunks.append((first, word, span.label))
            widened += words[first][0] < span.start or words[word - 1][1] > span.end
    return WordTags(
        tag_ids=schema.chunks_to_tags(chunks, len(words)),
        num_spans=len(spans),
        num_widened=widened,
        num_lost=len(spans) - len(chunks),
    )


def tags_to_spans(
    tag_ids: Sequence[int], words: Sequence[tuple[int, int]], schema: LabelSchema
) -> tuple[EntitySpan, ...]:
    """Return the character spans of IOB2 tag ids `(words,)`, from an entity's first to its last word.

    Raises:
        ValidationError: As many tags as words are needed, each a known id.
    """
    if len(tag_ids) != len(words):
        raise ValidationError(f"{len(tag_ids)} tags for {len(words)} words; there must be one tag per word.")
    return tuple(
        EntitySpan(start=words[first][0], end=words[end - 1][1], label=label)
        for first, end, label in schema.tags_to_chunks(tag_ids)
    )


def _require_label(where: str, name: object) -> None:
    """Raise unless `name` can be the type in `B-name`: non-empty, no white space, not `O`."""
    if not isinstance(name, str) or not name or name == OUTSIDE or any(c.isspace() for c in name):
        raise ValidationError(
            f"{where} holds {name!r}; a label is a non-empty text without white space, and not 'O'."
        )


def _shorten(label: str) -> str:
    """Return a label for a message, cut so that a misread column cannot put a sentence into a log."""
    return repr(label if len(label) <= 40 else label[:37] + "...")
