"""Edits of a note's text that keep every entity and every word on its characters, or refuse.

Everything that changes text (cleaning, de-identification, augmentation) says what it changes as `Edit`s, and
`apply_edits` alone moves the offsets. Offsets count code points, so combining characters, emoji, `\\r\\n` and
ideographs need no rule of their own.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise

from common.errors import DataError, ValidationError
from common.records import EntitySpan, Note
from common.word_splitter import WordSplitter

_SPLITTER = WordSplitter()


@dataclass(frozen=True, kw_only=True, slots=True)
class Edit:
    """Characters `[start, end)` of a text become `replacement`; equal ends insert it.

    Attributes:
        start: First character.
        end: One past the last character.
        replacement: What stands there afterwards; "" deletes.
    """

    start: int
    end: int
    replacement: str = field(repr=False)


class EditConflict(DataError):
    """An edit would cut an entity's border, or leave an entity or a note without characters.

    Its `reason` is `edit-crosses-entity`, `edit-empties-entity` or `no-text`.
    """


def apply_edits(note: Note, edits: Sequence[Edit]) -> Note:
    """Return the note after the edits, its spans and words on the characters that they had.

    An edit inside an entity, or on exactly its characters, changes the entity's length. An insertion at an
    entity's border stays outside. An edit inside a word resizes the word; what other edits bring is split by
    the common rule, and words of which nothing is left are gone.

    Args:
        note: The note.
        edits: In any order, without overlap, offsets in the note's text.

    Raises:
        EditConflict: An edit would cut or empty an entity, or the text would become empty.
        ValidationError: Edits overlap, are reversed, go past the text, or insert twice at one place.
    """
    if not edits:
        return note
    ordered = sorted(edits, key=lambda e: (e.start, e.end))
    _check(ordered, note)
    shift = _Shift(ordered)
    text = "".join(_parts(note.text, ordered))
    if not text:
        raise EditConflict(f"the edits would leave note {note.note_id} without text.", reason="no-text")
    spans = tuple(_moved(span, shift, note.note_id) for span in note.spans)
    words = None if note.words is None else tuple(_words(note.words, ordered, shift, text))
    return replace(note, text=text, spans=spans, words=words)


class _Shift:
    """Where positions of the old text are in the new one."""

    def __init__(self, ordered: Sequence[Edit]) -> None:
        self._edits = ordered
        self._starts = [edit.start for edit in ordered]
        self._ends = [edit.end for edit in ordered]
        growth = (len(edit.replacement) - (edit.end - edit.start) for edit in ordered)
        self._growth = [0, *accumulate(growth)]

    def start(self, position: int) -> int:
        """Return where something that begins at `position` begins: after an insertion there."""
        return position + self._growth[bisect_right(self._ends, position)]

    def end(self, position: int) -> int:
        """Return where something that ends at `position` ends: before an insertion there."""
        return position + self._growth[bisect_left(self._starts, position)]

    def around(self, position: int) -> Edit | None:
        """Return the edit that would swallow `position`, which lies strictly inside it."""
        before = bisect_left(self._starts, position) - 1
        if before >= 0 and self._ends[before] > position:
            return self._edits[before]
        return None

    def at(self, edit: Edit) -> int:
        """Return where an edit's replacement begins."""
        # An insertion and an edit may start at one place; the insertion comes first.
        index = bisect_left(self._starts, edit.start)
        index += self._ends[index] != edit.end
        return edit.start + self._growth[index]


def _check(ordered: Sequence[Edit], note: Note) -> None:
    """Raise unless the edits lie in the text and do not touch the same characters."""
    for edit in ordered:
        if not 0 <= edit.start <= edit.end <= len(note.text):
            raise ValidationError(
                f"edit [{edit.start}, {edit.end}) of note {note.note_id} is reversed or goes past the text, which "
                f"has {len(note.text)} characters."
            )
    for first, second in pairwise(ordered):
        if second.start < first.end or (first.start, first.end) == (second.start, second.end):
            raise ValidationError(
                f"edits [{first.start}, {first.end}) and [{second.start}, {second.end}) of note {note.note_id} "
                "overlap; make one edit of them."
            )


def _parts(text: str, ordered: Sequence[Edit]) -> Iterator[str]:
    """Yield the pieces of the new text."""
    position = 0
    for edit in ordered:
        yield text[position : edit.start]
        yield edit.replacement
        position = edit.end
    yield text[position:]


def _moved(span: EntitySpan, shift: _Shift, note_id: str) -> EntitySpan:
    """Return the entity on its characters of the new text."""
    edit = shift.around(span.start) or shift.around(span.end)
    if edit is not None:
        raise EditConflict(
            f"the edit [{edit.start}, {edit.end}) of note {note_id} would cut the entity "
            f"[{span.start}, {span.end}) at its border.",
            reason="edit-crosses-entity",
        )
    start, end = shift.start(span.start), shift.end(span.end)
    if start >= end:
        raise EditConflict(
            f"the edits would leave nothing of the entity [{span.start}, {span.end}) of note {note_id}.",
            reason="edit-empties-entity",
        )
    return EntitySpan(start=start, end=end, label=span.label)


def _words(
    words: Sequence[tuple[int, int]], ordered: Sequence[Edit], shift: _Shift, text: str
) -> list[tuple[int, int]]:
    """Return the words of the new text in order."""
    moved: list[tuple[int, int]] = []
    for start, end in words:
        head, tail = shift.around(start), shift.around(end)
        start, end = head.end if head else start, tail.start if tail else end
        if start < end:
            moved += _at_spaces(text, shift.start(start), shift.end(end))
    for edit in ordered:
        if not _is_inside_a_word(edit, words):
            base = shift.at(edit)
            moved += [(base + start, base + end) for start, end in _SPLITTER.split(edit.replacement)]
    return sorted(moved)


def _is_inside_a_word(edit: Edit, words: Sequence[tuple[int, int]]) -> bool:
    """Return whether an edit changes one word alone; an insertion at a word's border does not."""
    index = bisect_right(words, edit.start, key=lambda word: word[0]) - 1
    if index < 0:
        return False
    start, end = words[index]
    if edit.start == edit.end:
        return start < edit.start < end
    return start <= edit.start and edit.end <= end


def _at_spaces(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of `[start, end)` between white space: one, unless an edit brought white space in."""
    position = start
    while position < end:
        while position < end and text[position].isspace():
            position += 1
        first = position
        while position < end and not text[position].isspace():
            position += 1
        if first < position:
            yield first, position
