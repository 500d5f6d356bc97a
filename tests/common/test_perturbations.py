"""Perturbations: labels stay valid and entities stay, whatever the text is made of."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ValidationError
from common.labels import LabelSchema
from common.perturbations import PERTURBATIONS, Sources, gather, perturb, words_with_tags
from common.records import EntitySpan, Note
from common.tokenization import gold_tags, words_of

SCHEMA = LabelSchema(entity_types=("Disease", "Drug"))
PIECES = (
    "the",
    "Patient",
    "x-ray",
    "décès",
    "é",
    "肺",
    "心臓",
    "👩🏽‍⚕️",
    "٣",
    "Gly23",
    "\r\n",
    "\t",
    " ",
    ",",
    "-",
    "ß",
    "İ",
)
TEXTS = st.lists(
    st.tuples(
        st.sampled_from(PIECES) | st.text(max_size=6), st.sampled_from(["", "Disease", "Drug"]), st.booleans()
    ),
    min_size=1,
    max_size=14,
)
SYNONYMS = {"the": ("a", "one more"), "patient": ("person",), "x": ("y",)}
MENTIONS = {"Disease": ("gout", "x-linked gout", "肺炎"), "Drug": ("ASA",)}


def note_of(pieces: list[tuple[str, str, bool]], *, with_words: bool) -> Note:
    text, spans, words = "", [], []
    for piece, label, spaced in pieces:
        start = len(text)
        text += piece
        if label and piece.strip():
            spans.append(EntitySpan(start=start, end=len(text), label=label))
        if piece.strip() and not any(c.isspace() for c in piece):
            words.append((start, len(text)))
        text += " " if spaced else ""
    return Note(
        note_id="n",
        text=text or ".",
        spans=tuple(spans),
        words=tuple(words) if with_words and words else None,
    )


def sources_of(note: Note) -> Sources:
    own = gather([note], synonyms=SYNONYMS)
    return Sources(synonyms=SYNONYMS, mentions=MENTIONS, words=own.words, fillers=own.fillers)


@settings(max_examples=400, deadline=None)
@given(
    TEXTS,
    st.booleans(),
    st.sampled_from(sorted(PERTURBATIONS)),
    st.sampled_from([0.3, 1.0]),
    st.integers(0, 99),
)
def test_labels_stay_valid_and_entities_stay(
    pieces: list[tuple[str, str, bool]], with_words: bool, operation: str, rate: float, seed: int
) -> None:
    note = note_of(pieces, with_words=with_words)
    changed = perturb(note, operation, rate, sources_of(note), random.Random(seed))
    assert [span.label for span in changed.spans] == [span.label for span in note.spans]
    assert all(0 <= s.start < s.end <= len(changed.text) for s in changed.spans)
    assert all(a.end <= b.start for a, b in zip(changed.spans, changed.spans[1:], strict=False))
    words = words_of(changed)
    assert all(0 <= s < e <= len(changed.text) for s, e in words)
    assert all(a[1] <= b[0] for a, b in pairwise(words))
    before, after = gold_tags(note, SCHEMA), gold_tags(changed, SCHEMA)
    tags = [SCHEMA.tags[i] for i in after.tag_ids]
    for previous, tag in zip(["O", *tags], tags, strict=False):
        assert not tag.startswith("I-") or previous[2:] == tag[2:]
    assert after.num_lost <= before.num_lost
    # An entity that shared a word with another may have that word to itself afterwards, and be widened to it.
    assert after.num_lost + after.num_widened <= before.num_lost + before.num_widened
    if operation in ("synonym", "insertion", "replacement", "swap", "deletion"):
        assert [changed.text[s.start : s.end] for s in changed.spans] == [
            note.text[s.start : s.end] for s in note.spans
        ]


@pytest.mark.parametrize("operation", sorted(PERTURBATIONS))
def test_each_operation_changes_what_it_says(operation: str) -> None:
    text = "The patient with severe asthma takes aspirin every day because gout came back"
    spans = [("asthma", "Disease"), ("aspirin", "Drug"), ("gout", "Disease")]
    note = Note(
        note_id="n",
        text=text,
        spans=tuple(
            EntitySpan(start=text.index(m), end=text.index(m) + len(m), label=label) for m, label in spans
        ),
    )
    changed = perturb(note, operation, 1.0, sources_of(note), random.Random(1))
    mentions = [changed.text[s.start : s.end] for s in changed.spans]
    outside = [w.text for w in words_with_tags(changed) if w.tag == "O"]
    before = [w.text for w in words_with_tags(note) if w.tag == "O"]
    if operation in ("mention", "label_wise", "case", "typo"):
        assert mentions != [m for m, _ in spans]
    else:
        assert mentions == [m for m, _ in spans]
    if operation == "mention":
        assert outside == before
    else:
        assert outside != before
    if operation == "synonym":
        assert outside[:2] == ["A", "person"] or outside[:3] == ["One", "more", "person"]
    if operation == "swap":
        assert sorted(outside) == sorted(before)
    if operation == "insertion":
        assert len(outside) > len(before)
    if operation == "deletion":
        assert changed.text == "asthma aspirin gout "


def test_a_rate_of_nothing_changes_nothing() -> None:
    note = note_of([("the", "", True), ("gout", "Disease", True)], with_words=False)
    for operation in PERTURBATIONS:
        assert perturb(note, operation, 0.0, sources_of(note), random.Random(0)) is note


def test_the_same_seed_gives_the_same_note() -> None:
    note = note_of([(word, "", True) for word in ("several", "words", "stand", "here")], with_words=True)
    runs = {perturb(note, "typo", 0.5, Sources(), random.Random(4)).text for _ in range(3)}
    assert len(runs) == 1
    assert len({perturb(note, "typo", 0.5, Sources(), random.Random(s)).text for s in range(20)}) > 3


def test_a_word_that_an_entity_covers_in_part_is_left_alone() -> None:
    note = Note(
        note_id="n",
        text="goutlike pain",
        spans=(EntitySpan(start=0, end=4, label="Disease"),),
        words=((0, 8), (9, 13)),
    )
    assert [w.tag for w in words_with_tags(note)] == [None, "O"]
    for operation in ("case", "typo", "label_wise", "deletion"):
        for seed in range(5):
            changed = perturb(note, operation, 1.0, sources_of(note), random.Random(seed))
            assert changed.text.startswith("goutlike")


def test_an_unknown_operation_is_refused_with_the_nearest_one() -> None:
    note = note_of([("the", "", True)], with_words=False)
    with pytest.raises(ValidationError, match="Did you mean 'typo'"):
        perturb(note, "typos", 0.1, Sources(), random.Random(0))
