"""Cleaning of characters, line breaks and white space. Each stage is a function of one note.

An edit that would cut an entity's border is not made, and counted (`left_at_entity`): the note is as it was
there. No stage joins or drops a negation cue.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import ClassVar

import regex  # type: ignore[import-untyped]

from client.preprocessing import Scope
from client.preprocessing_negation import begins_with_cue, ends_with_cue
from common.records import EntitySpan, Note
from common.text_edits import Edit, apply_edits

LEFT_AT_ENTITY = "left_at_entity"
_CUE_WINDOW = 40
"""Characters that hold the longest negation cue and what may stand before it."""

_LIGATURES = {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"}
# A joiner means something between letters of these scripts and inside an emoji, and nothing elsewhere.
_JOINED = (
    r"[\p{Script=Arabic}\p{Script=Devanagari}\p{Script=Bengali}\p{Script=Gujarati}\p{Script=Gurmukhi}"
    r"\p{Script=Kannada}\p{Script=Malayalam}\p{Script=Oriya}\p{Script=Sinhala}\p{Script=Tamil}\p{Script=Telugu}"
    r"\p{Script=Mongolian}\p{Script=Syriac}\p{Script=Khmer}\p{Script=Myanmar}\p{Extended_Pictographic}"
    r"\p{Emoji_Modifier}\uFE0F]"
)
_UNWANTED = regex.compile(
    rf"""
    (?P<ligature>[\uFB00-\uFB06])
    | (?P<line_end>[\x0B\x0C\x85\u2028\u2029])
    | (?P<invisible>(?:[\u200B\uFEFF\x00-\x08\x0E-\x1F\x7F-\x84\x86-\x9F]
        |[\u00AD\u2060-\u2064\u200E\u200F\u202A-\u202E\u2066-\u2069]
        |(?<!{_JOINED}\p{{M}}*)[\u200C\u200D]|[\u200C\u200D](?!{_JOINED}))+)
    """,
    regex.VERBOSE,
)
_CONTROL = regex.compile(r"\p{Cc}")
# What parts words by the common rule of splitting; other invisible characters stand inside words.
_SEPARATOR = regex.compile(r"[\p{Cc}\u200B\uFEFF]")
_UNUSUAL = regex.compile(r"[^\t\n\r\x20-\x7E]")
_CLUSTER = regex.compile(r"\X")
_LETTER = regex.compile(r"[\p{L}\p{M}\p{N}]")
_UNSPACED = regex.compile(r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]")


class Cleaner:
    """What the stages of this kind share: counts, and edits that leave every entity's border alone."""

    scope: ClassVar[Scope] = "unit"
    name: ClassVar[str] = ""

    def __init__(self) -> None:
        self._counts = Counter[str]()

    def apply(self, note: Note) -> Note:
        """Return the note after this stage.

        Raises:
            EditConflict: The edits would leave nothing of an entity or of the note.
        """
        cleaned = self._clean(note)
        self._counts["notes_changed"] += cleaned.text != note.text
        return cleaned

    def counts(self) -> Mapping[str, int]:
        """Return what was changed so far, by kind."""
        return dict(+self._counts)

    def _clean(self, note: Note) -> Note:
        """Return the note as this stage leaves it."""
        raise NotImplementedError

    def _apply(self, note: Note, found: Iterable[tuple[str, Edit]]) -> Note:
        """Make the edits that cut no entity, and count them by kind."""
        edits = []
        for kind, edit in found:
            if cuts_entity(edit, note.spans):
                self._counts[LEFT_AT_ENTITY] += 1
                continue
            edits.append(edit)
            self._counts[kind] += 1
        return apply_edits(note, edits)


def cuts_entity(edit: Edit, spans: Iterable[EntitySpan]) -> bool:
    """Return whether an edit has an entity's border strictly inside it, or would leave nothing of an entity."""
    for span in spans:
        if edit.start < span.start < edit.end or edit.start < span.end < edit.end:
            return True
        if not edit.replacement and (edit.start, edit.end) == (span.start, span.end):
            return True
    return False


class UnicodeCleaning(Cleaner):
    """Composes accents (NFC), spells ligatures out, and removes control and zero-width characters.

    A character that parts two words becomes a space, so that `no` and what follows stay two words; joiners stay
    where a script or an emoji needs them.
    """

    name = "unicode"

    def _clean(self, note: Note) -> Note:
        """Return the note with clean characters."""
        text = note.text
        if _UNUSUAL.search(text) is None:
            return note
        note = self._apply(note, self._unwanted(text))
        if unicodedata.is_normalized("NFC", note.text):
            return note
        return self._apply(note, self._decomposed(note.text))

    def _unwanted(self, text: str) -> Iterable[tuple[str, Edit]]:
        """Yield the edits of characters that do not belong into a text."""
        for found in _UNWANTED.finditer(text):
            kind = found.lastgroup
            replacement = ""
            if kind == "ligature":
                replacement = _LIGATURES[found.group()]
            elif kind == "line_end":
                replacement = "\n"
            elif _SEPARATOR.search(found.group()):
                kind = "control" if _CONTROL.search(found.group()) else "zero_width"
                replacement = " " if _parts_words(text, *found.span()) else ""
            else:
                kind = "zero_width"
                replacement = " " if _parts_a_cue(text, *found.span()) else ""
            yield kind, Edit(start=found.start(), end=found.end(), replacement=replacement)

    def _decomposed(self, text: str) -> Iterable[tuple[str, Edit]]:
        """Yield an edit for each user-perceived character that NFC writes in another way."""
        for found in _CLUSTER.finditer(text):
            cluster = found.group()
            composed = unicodedata.normalize("NFC", cluster)
            if composed != cluster:
                yield "composed", Edit(start=found.start(), end=found.end(), replacement=composed)


class LineBreakRepair(Cleaner):
    r"""Line ends become `\n`, words cut at a line's end are joined, and wrapped lines become one.

    A line is taken as wrapped if it is at least `wrap_width` characters long, does not end a sentence, and the next
    one begins in lower case (or in a script without case or spaces). Where a line ends or the next begins with a
    negation cue, the break stays. `non-` and its like keep their hyphen.

    Args:
        wrap_width: From how many characters on a line may be a wrapped one.
    """

    name = "line_breaks"
    _BROKEN = regex.compile(r"(?<=(\p{L}{2,}))-[ \t]*\r?\n[ \t]*(?=\p{Ll}{2})")
    _KEPT_HYPHEN = frozenset(
        {"non", "no", "anti", "not", "un", "re", "pre", "post", "ex", "self", "sin", "nicht"}
    )
    _SENTENCE_END = ".!?:;。！？：；"
    _LINE_END = regex.compile(r"\r\n?|\n")

    def __init__(self, *, wrap_width: int = 60) -> None:
        super().__init__()
        self._wrap_width = wrap_width

    def _clean(self, note: Note) -> Note:
        """Return the note with its lines mended."""
        if "\n" not in note.text and "\r" not in note.text:
            return note
        note = self._apply(note, self._broken_words(note.text))
        return self._apply(note, self._line_ends(note.text))

    def _broken_words(self, text: str) -> Iterable[tuple[str, Edit]]:
        """Yield the edits that join words cut by a hyphen at a line's end."""
        for found in self._BROKEN.finditer(text):
            if begins_with_cue(text[found.end() : found.end() + _CUE_WINDOW]):
                continue
            first = found.group(1)
            keep = first.casefold() in self._KEPT_HYPHEN or ends_with_cue(first)
            yield "words_joined", Edit(start=found.start() + keep, end=found.end(), replacement="")

    def _line_ends(self, text: str) -> Iterable[tuple[str, Edit]]:
        """Yield the edits of line ends, wrapped lines first."""
        begin = 0
        for found in self._LINE_END.finditer(text):
            line = text[begin : found.start()]
            begin = found.end()
            if self._is_wrapped(line, text, begin):
                spaced = not (_UNSPACED.match(line[-1]) and _UNSPACED.match(text[begin]))
                yield "lines_joined", Edit(start=found.start(), end=begin, replacement=" " if spaced else "")
            elif found.group() != "\n":
                yield "line_ends", Edit(start=found.start(), end=begin, replacement="\n")

    def _is_wrapped(self, line: str, text: str, begin: int) -> bool:
        """Return whether the line goes on at `begin`."""
        if len(line) < self._wrap_width or line[-1].isspace() or line[-1] in self._SENTENCE_END:
            return False
        follows = text[begin : begin + 1]
        goes_on = follows.islower() or bool(_UNSPACED.match(follows) and _UNSPACED.match(line[-1]))
        if not goes_on:
            return False
        rest = text[begin : begin + _CUE_WINDOW]
        return not ends_with_cue(line) and not begins_with_cue(rest)


class WhiteSpace(Cleaner):
    """Runs of spaces and tabs become one space, lines lose their ends' spaces, and at most one line stays empty."""

    name = "whitespace"
    _RUN = regex.compile(
        r"(?P<trimmed>\A\s+|\s+\Z)|(?P<empty_lines>[^\S\n]*\n(?:[^\S\n]*\n){2,}[^\S\n]*)"
        r"|(?P<line_edges>[^\S\n]+(?=\n)|(?<=\n)[^\S\n]+(?=\n))|(?P<runs>[^\S\n]{2,}|[^\S\n ])"
    )

    def _clean(self, note: Note) -> Note:
        """Return the note with plain white space."""
        return self._apply(note, self._runs(note.text))

    def _runs(self, text: str) -> Iterable[tuple[str, Edit]]:
        """Yield the edits; a carriage return before a line end counts as white space at the line's end."""
        for found in self._RUN.finditer(text):
            kind = found.lastgroup
            replacement = {"trimmed": "", "empty_lines": "\n\n", "line_edges": "", "runs": " "}[kind]
            if found.group() != replacement:
                yield kind, Edit(start=found.start(), end=found.end(), replacement=replacement)


def _parts_words(text: str, start: int, end: int) -> bool:
    """Return whether what stands at `[start, end)` is all that parts two words, one of them written with spaces."""
    before, after = text[start - 1 : start] if start else "", text[end : end + 1]
    if not before or not after:
        return False
    if _UNSPACED.match(before) and _UNSPACED.match(after):
        return False
    return bool(_LETTER.match(before) and _LETTER.match(after))


def _parts_a_cue(text: str, start: int, end: int) -> bool:
    """Return whether a negation cue would grow together with a word if what is at `[start, end)` went."""
    if not _parts_words(text, start, end):
        return False
    return ends_with_cue(text[max(0, start - _CUE_WINDOW) : start]) or begins_with_cue(
        text[end : end + _CUE_WINDOW]
    )
