"""Edits keep entities and words on their characters, or refuse."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ValidationError
from common.records import EntitySpan, Note
from common.text_edits import Edit, EditConflict, apply_edits
from common.word_splitter import WordSplitter

TEXT = "Mr Smith has acute renal failure."
RENAL = EntitySpan(start=13, end=32, label="Disease")
SMITH = EntitySpan(start=3, end=8, label="Person")


def note(text: str = TEXT, spans: tuple[EntitySpan, ...] = (SMITH, RENAL), words: bool = True) -> Note:
    found = WordSplitter().split(text) if words else None
    return Note(note_id="n1", text=text, spans=spans, words=found, patient_id="p")


def mentions(value: Note) -> list[str]:
    return [value.text[span.start : span.end] for span in value.spans]


def tokens(value: Note) -> list[str]:
    assert value.words is not None
    return [value.text[start:end] for start, end in value.words]


def test_text_before_between_and_after_entities_moves_them() -> None:
    edits = [
        Edit(start=32, end=33, replacement=" now!"),
        Edit(start=0, end=3, replacement=""),
        _at(9, "never "),
    ]
    changed = apply_edits(note(), edits)
    assert changed.text == "Smith never has acute renal failure now!"
    assert mentions(changed) == ["Smith", "acute renal failure"]
    assert tokens(changed) == ["Smith", "never", "has", "acute", "renal", "failure", "now!"]
    assert changed.patient_id == "p"


def test_an_edit_on_exactly_an_entity_keeps_it_on_the_replacement() -> None:
    changed = apply_edits(note(), [Edit(start=3, end=8, replacement="Ana Ruiz")])
    assert mentions(changed) == ["Ana Ruiz", "acute renal failure"]
    assert tokens(changed)[:4] == ["Mr", "Ana", "Ruiz", "has"]


def test_an_edit_inside_an_entity_changes_its_length() -> None:
    changed = apply_edits(note(), [Edit(start=13, end=19, replacement="")])
    assert mentions(changed)[1] == "renal failure"


def test_an_insertion_at_a_border_stays_outside() -> None:
    changed = apply_edits(note(), [_at(3, "Dr "), _at(8, ",")])
    assert mentions(changed)[0] == "Smith"
    assert tokens(changed)[:4] == ["Mr", "Dr", "Smith", ","]


def test_an_insertion_comes_before_an_edit_at_the_same_place() -> None:
    changed = apply_edits(note(), [Edit(start=3, end=8, replacement="Jones"), _at(3, "Dr ")])
    assert changed.text.startswith("Mr Dr Jones has")
    assert mentions(changed)[0] == "Jones"
    assert tokens(changed)[:3] == ["Mr", "Dr", "Jones"]


@pytest.mark.parametrize(("start", "end"), [(0, 5), (5, 10), (0, 10), (3, 9), (2, 8), (3, 20)])
def test_an_edit_across_a_border_is_refused(start: int, end: int) -> None:
    with pytest.raises(EditConflict, match="n1") as caught:
        apply_edits(note(), [Edit(start=start, end=end, replacement="x")])
    assert "Smith" not in str(caught.value)


def test_an_entity_or_a_text_without_characters_is_refused() -> None:
    with pytest.raises(EditConflict, match="nothing of the entity"):
        apply_edits(note(), [Edit(start=3, end=5, replacement=""), Edit(start=5, end=8, replacement="")])
    with pytest.raises(EditConflict, match="without text"):
        apply_edits(note(spans=()), [Edit(start=0, end=len(TEXT), replacement="")])


@pytest.mark.parametrize("bounds", [[(5, 9), (8, 10)], [(4, 4), (4, 4)], [(9, 5)], [(0, 99)], [(-1, 2)]])
def test_edits_that_cannot_be_done_are_refused(bounds: list[tuple[int, int]]) -> None:
    edits = [Edit(start=start, end=end, replacement="") for start, end in bounds]
    with pytest.raises(ValidationError):
        apply_edits(note(spans=()), edits)


def test_an_edit_over_several_words_brings_its_own() -> None:
    changed = apply_edits(note(spans=()), [Edit(start=5, end=11, replacement="[X Y]")])
    assert changed.text == "Mr Sm[X Y]s acute renal failure."
    assert tokens(changed)[:8] == ["Mr", "Sm", "[", "X", "Y", "]", "s", "acute"]


def test_the_repr_of_an_edit_shows_no_text() -> None:
    assert "Smith" not in repr(Edit(start=0, end=1, replacement="Smith"))


PIECES = st.sampled_from(
    [
        "fever",
        "no",
        "é",
        "e\u0301",
        "👩🏽‍⚕️",
        "\r\n",
        "\n",
        " ",
        "心",
        "肌梗死",
        "\u200b",
        "ﬁ",
        ".",
        "-",
        "\t",
        "🇪🇸",
    ]
)


@st.composite
def edited_notes(draw: st.DrawFn) -> tuple[Note, list[Edit]]:
    """Draw a note with entities, and edits that lie inside an entity, on it, or between entities."""
    pieces = draw(st.lists(PIECES, min_size=1, max_size=25))
    replacements = st.lists(PIECES, max_size=3).map("".join)
    text, spans, edits = "".join(pieces), [], []
    cuts = sorted(set(draw(st.lists(st.integers(0, len(text)), max_size=8))) | {0, len(text)})
    for segment, (start, end) in enumerate(pairwise(cuts)):
        if segment % 2:
            spans.append(EntitySpan(start=start, end=end, label="T"))
        inner = sorted(draw(st.lists(st.integers(start, end), max_size=4)))
        for first, last in zip(inner[::2], inner[1::2], strict=False):
            edits.append(Edit(start=first, end=last, replacement=draw(replacements)))
    return note(text, tuple(spans), draw(st.booleans())), edits


@given(edited_notes())
@settings(max_examples=300, deadline=None)
def test_entities_and_words_keep_their_characters(drawn: tuple[Note, list[Edit]]) -> None:
    before, edits = drawn
    try:
        after = apply_edits(before, edits)
    except ValidationError:
        ordered = sorted((e.start, e.end) for e in edits)
        assert any(a == b or b[0] < a[1] for a, b in pairwise(ordered))
        return
    except EditConflict:
        return
    for old, new in zip(before.spans, after.spans, strict=True):
        inner = [
            Edit(start=e.start - old.start, end=e.end - old.start, replacement=e.replacement)
            for e in edits
            if old.start <= e.start
            and e.end <= old.end
            and not (e.start == e.end and e.start in (old.start, old.end))
        ]
        # The oracle edits the mention alone, from the right, so that no offset has to move.
        mention = before.text[old.start : old.end]
        for edit in sorted(inner, key=lambda e: (e.start, e.end), reverse=True):
            mention = mention[: edit.start] + edit.replacement + mention[edit.end :]
        assert after.text[new.start : new.end] == mention
    if after.words is not None:
        ends = 0
        for start, end in after.words:
            assert ends <= start < end <= len(after.text)
            assert not any(c.isspace() for c in after.text[start:end])
            ends = end


def _at(position: int, text: str) -> Edit:
    return Edit(start=position, end=position, replacement=text)
