"""Parts of a note: boilerplate phrases, parts that repeat within the note, section headers.

Each stage is a function of one note and public data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import regex  # type: ignore[import-untyped]

from client.preprocessing_negation import cues, has_cue
from client.preprocessing_shingles import minhash, shingles
from client.preprocessing_text import Cleaner
from common.errors import DataError, ValidationError
from common.ingestion_rejects import OnReject, refuse
from common.records import Note
from common.text_edits import Edit, apply_edits
from common.text_files import read_lines

_BLOCK = regex.compile(r"(?:[^\n]*\S[^\n]*(?:\n|\Z))+")
_FEWEST_LETTERS = 3


class Boilerplate(Cleaner):
    """Removes phrases that a house puts into every note: letterheads, disclaimers, "electronically signed by".

    White space in a phrase stands for any white space, and case does not matter. A phrase that overlaps an entity
    stays (`left_at_entity`). A phrase with a negation cue is refused, because what it negates could stay behind;
    with `allow_negation` it is removed where it fills whole lines, which no negation reaches across.

    Args:
        phrases: The phrases, public or the site's own.
        allow_negation: Whether phrases may hold negation cues.

    Raises:
        ValidationError: There is no phrase, or one is too short or holds a cue.
    """

    name = "boilerplate"

    def __init__(self, *, phrases: Sequence[str], allow_negation: bool = False) -> None:
        super().__init__()
        if not phrases:
            raise ValidationError(
                "the stage boilerplate has no phrases; list them under [preparation] in the plan or site.toml."
            )
        for number, phrase in enumerate(phrases, start=1):
            _require_phrase(number, phrase, allow_negation=allow_negation)
        # The longest first, so that a phrase within another does not leave the rest of it.
        ordered = sorted(phrases, key=len, reverse=True)
        self._pattern = regex.compile("|".join(map(_pattern_of, ordered)), regex.IGNORECASE)

    def _clean(self, note: Note) -> Note:
        """Return the note without the phrases."""
        return self._apply(note, self._phrases(note))

    def _phrases(self, note: Note) -> Iterator[tuple[str, Edit]]:
        """Yield an edit for each place of a phrase."""
        for found in self._pattern.finditer(note.text):
            start, end = found.span()
            if any(span.start < end and start < span.end for span in note.spans):
                self._counts["left_at_entity"] += 1
            elif has_cue(found.group()) and not _fills_lines(note.text, start, end):
                self._counts["left_negation"] += 1
            elif start < end < len(note.text) and start and _would_join(note.text, start, end):
                yield "phrases", Edit(start=start, end=end, replacement=" ")
            else:
                yield "phrases", Edit(start=start, end=end, replacement="")


def read_phrases(path: Path, *, on_reject: OnReject | None = None) -> list[str]:
    """Read a file of phrases, one a line; lines that begin with `#` are remarks.

    Args:
        path: A UTF-8 file.
        on_reject: Receives empty lines, which are left out; without it, the first raises.

    Raises:
        DataError: The file cannot be read, or has an empty line.
    """
    phrases = []
    for line, content in read_lines(path):
        if not content.strip():
            wrong = "is empty, and an empty phrase is everywhere; remove the line."
            refuse(DataError(wrong, path=path, line=line, reason="empty-phrase"), on_reject)
        elif not content.startswith("#"):
            phrases.append(content.strip())
    return phrases


class RepeatedParts(Cleaner):
    """Removes a block of lines that repeats an earlier block of the same note, as copying forward leaves them.

    Blocks are parted by empty lines. A repetition is a block of at least `min_words` words whose word shingles
    resemble an earlier block's by at least `threshold` (MinHash). It must have the same negation cues in the same
    order and the same entity mentions, which the earlier block keeps; otherwise it stays (`left_differing`).

    Args:
        min_words: Fewest words of a block that may go.
        threshold: Least estimated Jaccard similarity, in (0, 1].
    """

    name = "repeated_parts"

    def __init__(self, *, min_words: int = 8, threshold: float = 0.9) -> None:
        super().__init__()
        self._min_words = min_words
        self._threshold = threshold

    def _clean(self, note: Note) -> Note:
        """Return the note with each block once."""
        blocks = [
            found.span()
            for found in _BLOCK.finditer(note.text)
            if len(found.group().split()) >= self._min_words
        ]
        if len(blocks) < 2:
            return note
        copies = list(self._copies(note, blocks))
        if not copies:
            return note
        self._counts["parts"] += len(copies)
        return self._without(note, copies)

    def _copies(self, note: Note, blocks: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Yield the blocks that repeat an earlier one that stays."""
        kept: list[tuple[tuple[int, int], object]] = []
        for block in blocks:
            sketch = minhash(shingles(note.text[slice(*block)]))
            alike = [b for b, other in kept if sketch.jaccard(other) >= self._threshold]
            if alike and not any(_cuts(note, block) or _facts(note, b) != _facts(note, block) for b in alike):
                yield block
                continue
            self._counts["left_differing"] += bool(alike)
            kept.append((block, sketch))

    def _without(self, note: Note, copies: Sequence[tuple[int, int]]) -> Note:
        """Return the note without the copies, whose mentions are counted: the first block has them still."""
        spans = tuple(s for s in note.spans if not any(a <= s.start and s.end <= b for a, b in copies))
        self._counts["mentions"] += len(note.spans) - len(spans)
        edits = [Edit(start=start, end=end, replacement="") for start, end in copies]
        return apply_edits(replace(note, spans=spans), edits)


class SectionHeaders(Cleaner):
    """Puts each section header on a line of its own after an empty line, under one name.

    A header is a line of at most 60 characters that ends with a colon, is in capitals, or is in `names`.

    Args:
        names: How a site writes a header -> the name that it gets ("HPI" -> "History of present illness").
    """

    name = "sections"
    _HEADER = regex.compile(
        r"(?m)^[^\S\n]*(?P<header>\p{L}[\p{L}\p{N} /&()'-]{1,58}(?P<colon>[:：])|\p{Lu}[\p{Lu} /&-]{2,58})[^\S\n]*$"
    )

    def __init__(self, *, names: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._names = {_folded(key): value for key, value in (names or {}).items()}
        listed = "|".join(regex.escape(key) for key in names or {})
        self._listed = regex.compile(rf"(?m)^[^\S\n]*(?P<header>{listed})[:：]?[^\S\n]*$", regex.IGNORECASE)

    def _clean(self, note: Note) -> Note:
        """Return the note with plain headers."""
        return self._apply(note, self._headers(note.text))

    def _headers(self, text: str) -> Iterator[tuple[str, Edit]]:
        """Yield the edits before and of each header; negation cues are no headers."""
        patterns = [self._HEADER, self._listed] if self._names else [self._HEADER]
        found = {m.start("header"): m for pattern in patterns for m in pattern.finditer(text)}
        for start, match in sorted(found.items()):
            header = match.group("header").rstrip(":：")
            if cues(header) or sum(c.isalpha() for c in header) < _FEWEST_LETTERS:
                continue
            self._counts["headers"] += 1
            line = match.start()
            if line and not text[:line].endswith("\n\n"):
                yield "separated", Edit(start=line, end=line, replacement="\n")
            name = self._names.get(_folded(header))
            if name is not None and name != header:
                yield "renamed", Edit(start=start, end=start + len(header), replacement=name)


def _require_phrase(number: int, phrase: str, *, allow_negation: bool) -> None:
    """Raise unless a phrase can be looked for; the phrase itself is not shown."""
    if sum(c.isalnum() for c in phrase) < _FEWEST_LETTERS:
        raise ValidationError(
            f"phrase {number} of the stage boilerplate has fewer than {_FEWEST_LETTERS} letters; it would be "
            "found everywhere, so remove it."
        )
    if has_cue(phrase) and not allow_negation:
        raise ValidationError(
            f"phrase {number} of the stage boilerplate holds a negation cue; what it negates could stay behind. "
            "Shorten it, or set allow_negation to remove it where it fills whole lines."
        )


def _pattern_of(phrase: str) -> str:
    """Return the pattern of a phrase that begins and ends at the borders of words."""
    inner = r"\s+".join(regex.escape(part) for part in phrase.split())
    before = r"(?<![\p{L}\p{N}])" if phrase.strip()[0].isascii() and phrase.strip()[0].isalnum() else ""
    after = r"(?![\p{L}\p{N}])" if phrase.strip()[-1].isascii() and phrase.strip()[-1].isalnum() else ""
    return before + inner + after


def _fills_lines(text: str, start: int, end: int) -> bool:
    """Return whether nothing else stands on the lines of `[start, end)`."""
    first = text.rfind("\n", 0, start) + 1
    last = text.find("\n", end)
    return not text[first:start].strip() and not text[end : last if last >= 0 else len(text)].strip()


def _would_join(text: str, start: int, end: int) -> bool:
    """Return whether removing `[start, end)` would make one word of two."""
    return text[start - 1].isalnum() and text[end].isalnum()


def _cuts(note: Note, block: tuple[int, int]) -> bool:
    """Return whether an entity lies across a block's border."""
    start, end = block
    return any(s.start < edge < s.end for s in note.spans for edge in (start, end))


def _facts(note: Note, block: tuple[int, int]) -> tuple[object, ...]:
    """Return what a copy must share: its cues with the word after each, and its mentions."""
    start, end = block
    text = note.text[start:end]
    negated = tuple((text[a:b].casefold(), *text[b:].split(maxsplit=1)[:1]) for a, b in cues(text))
    mentions = Counter(
        (s.label, note.text[s.start : s.end].casefold())
        for s in note.spans
        if start <= s.start and s.end <= end
    )
    return negated, frozenset(mentions.items())


def _folded(header: str) -> str:
    """Return a header as it is compared."""
    return " ".join(header.casefold().rstrip(":：").split())


def all_phrases(*sources: Iterable[str]) -> tuple[str, ...]:
    """Return the phrases of several lists, each once, in order."""
    return tuple(dict.fromkeys(phrase for source in sources for phrase in source))
