"""Presidio recognisers that are compiled once, run behind a cheap test, and never open a connection.

Presidio's own `PatternRecognizer` explains every match and, where a pattern takes too long, logs that and goes
on without it. Here a pattern that takes too long rejects the note: what was not searched may not pass as clean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import regex  # type: ignore[import-untyped]
from presidio_analyzer import LocalRecognizer, Pattern, PatternRecognizer, RecognizerResult
from presidio_analyzer.predefined_recognizers import EmailRecognizer
from tldextract import TLDExtract

from client.phi import EMAIL, PHONE
from client.preprocessing import Rejected

LANGUAGE = "xx"
"""The one language code that all recognisers are registered under; which of them run is chosen beforehand."""

SECONDS_PER_PATTERN = 5.0
"""So long may one pattern search one note."""

EMAIL_LENGTH = 320
"""No e-mail address is longer (RFC 3696, errata 1690: 64 + 1 + 255)."""

TOO_SLOW = "pattern-too-slow"
"""The reason code of a note that a pattern could not be searched for in time."""

_WORDS = regex.compile(r"[\p{L}\p{M}\p{N}]+")
_HAN = regex.compile(r"\p{Han}")


class CompiledRecognizer(LocalRecognizer):
    """Runs the patterns and the checks of a Presidio pattern recogniser.

    Args:
        inner: Brings patterns, flags, `validate_result` and `invalidate_result`.
        kind: The PHI type that its matches get.
        least: Matches that score less are not reported.
        gate: Where given, the patterns run only on texts that this pattern is found in.
        near: Where given, they run only so many characters around each place where the gate is found; no match
            may be longer.
    """

    def __init__(
        self,
        inner: PatternRecognizer,
        *,
        kind: str,
        least: float,
        gate: str | None = None,
        near: int | None = None,
    ) -> None:
        flags = inner.global_regex_flags
        self._near = near
        self._inner, self._kind, self._least = inner, kind, least
        self._gate = None if gate is None else regex.compile(gate)
        patterns: list[Pattern] = inner.patterns  # type: ignore[has-type]
        self._patterns = [(regex.compile(one.regex, flags=flags), float(one.score)) for one in patterns]
        super().__init__(supported_entities=[kind], name=type(inner).__name__, supported_language=LANGUAGE)

    def load(self) -> None:
        """There is nothing to load."""

    def analyze(
        self, text: str, entities: Sequence[str], nlp_artifacts: object = None
    ) -> list[RecognizerResult]:
        """Return what the patterns find in a text.

        Raises:
            Rejected: A pattern took too long.
        """
        try:
            return [
                result
                for region in self._regions(text)
                for compiled, score in self._patterns
                for result in self._matches(text, region, compiled, score)
            ]
        except TimeoutError:
            raise Rejected(TOO_SLOW) from None

    def _regions(self, text: str) -> Iterable[tuple[int, int]]:
        """Yield the disjoint parts of a text that the patterns are run on."""
        if self._gate is None or self._near is None:
            if self._gate is None or self._gate.search(text) is not None:
                yield 0, len(text)
            return
        first, end = 0, 0
        for match in self._gate.finditer(text):
            if match.start() - self._near > end:
                if end:
                    yield first, end
                first = match.start() - self._near
            end = min(len(text), match.end() + self._near)
        if end:
            yield first, end

    def _matches(
        self, text: str, region: tuple[int, int], compiled: Any, score: float
    ) -> Iterable[RecognizerResult]:
        """Yield the matches of one pattern that are sure enough."""
        for match in compiled.finditer(text, *region, timeout=SECONDS_PER_PATTERN):
            found = match.group().rstrip(" \t,")
            start = match.start()
            end = start + len(found)
            if start == end:
                continue
            sure = self._score(found, score)
            if sure >= self._least:
                yield RecognizerResult(entity_type=self._kind, start=start, end=end, score=sure)

    def _score(self, found: str, score: float) -> float:
        """Return the score after the recogniser's own checks, as Presidio computes it."""
        valid = self._inner.validate_result(found)
        if valid is not None:
            score = 1.0 if valid else 0.0
        return 0.0 if self._inner.invalidate_result(found) else score


class CasedPatterns(PatternRecognizer):
    """Patterns of one PHI type whose letters count as they are written, unlike Presidio's default."""

    def __init__(self, kind: str, name: str, patterns: Sequence[tuple[str, float]]) -> None:
        super().__init__(
            supported_entity=kind,
            name=name,
            patterns=[
                Pattern(name=f"{name}-{number}", regex=text, score=score)
                for number, (text, score) in enumerate(patterns)
            ],
            global_regex_flags=regex.MULTILINE,
        )


class OfflineEmails(EmailRecognizer):
    """Presidio's e-mail recogniser on the public-suffix list that `tldextract` ships: it fetches nothing.

    An address under a domain that is not public (`ward@clinic.local`) is reported too; Presidio drops it.
    """

    # Possessive, so that a word without an @ is given up at once.
    _PATTERN = r"(?<![\w.+-])[\w.!#$%&'*+/=?^`{|}~-]++(?<=[\w])@\w+(?:-+\w+)*+(?:\.\w+(?:-+\w+)*)*+"

    def __init__(self) -> None:
        self._suffixes = TLDExtract(suffix_list_urls=(), cache_dir=None, fallback_to_snapshot=True)
        super().__init__(patterns=[Pattern("email", self._PATTERN, 0.5)], supported_entity=EMAIL)

    def validate_result(self, pattern_text: str) -> bool | None:
        """Return True for a public domain, and no opinion on another."""
        return True if self._suffixes(pattern_text).fqdn else None


class PhoneNumbers(PatternRecognizer):
    """Runs of digits that `phonenumbers`, which Presidio rests on, takes for a valid number of a region.

    Presidio's own recogniser searches the text once for each region; here the candidates are found once.
    """

    _PATTERN = r"(?<![\w.,/+:-])(?:\+|\()?\d(?:[ .()-]{0,2}\d){7,13}(?![\w%/]|[.,-]\d)"

    def __init__(self, regions: Sequence[str]) -> None:
        import phonenumbers

        self._library, self._regions = phonenumbers, tuple(regions)
        super().__init__(
            supported_entity=PHONE,
            name="phone-numbers",
            patterns=[Pattern("digits", self._PATTERN, 0.5)],
            global_regex_flags=0,
        )

    def validate_result(self, pattern_text: str) -> bool | None:
        """Return whether the number is valid in one of the regions; a valid one keeps its score."""
        library = self._library
        for region in self._regions:
            try:
                if library.is_valid_number(library.parse(pattern_text, region)):
                    return None
            except library.NumberParseException:
                continue
        return False


class TermRecognizer(LocalRecognizer):
    """Finds the terms of a site's list, whatever their case; terms in Chinese need no word border.

    Args:
        kind: The PHI type of the terms.
        name: What the list is called.
        terms: The terms, not empty; white space in them stands for any white space.
    """

    def __init__(self, kind: str, name: str, terms: Sequence[str]) -> None:
        self._kind = kind
        self._terms: dict[str, list[tuple[str, ...]]] = {}
        self._unspaced = [term for term in terms if _HAN.search(term)]
        for term in terms:
            parts = tuple(_WORDS.findall(term.casefold()))
            if parts and not _HAN.search(term):
                self._terms.setdefault(parts[0], []).append(parts)
        super().__init__(supported_entities=[kind], name=name, supported_language=LANGUAGE)

    def load(self) -> None:
        """There is nothing to load."""

    def analyze(
        self, text: str, entities: Sequence[str], nlp_artifacts: object = None
    ) -> list[RecognizerResult]:
        """Return where terms stand in a text; time is linear in it, whatever the length of the list."""
        spans = [(m.start(), m.end()) for m in _WORDS.finditer(text)] if self._terms else []
        words = [text[start:end].casefold() for start, end in spans]
        found = [
            (spans[i][0], spans[i + len(parts) - 1][1])
            for i, word in enumerate(words)
            for parts in self._terms.get(word, ())
            if tuple(words[i : i + len(parts)]) == parts
        ]
        for term in self._unspaced:
            start = text.find(term)
            while start >= 0:
                found.append((start, start + len(term)))
                start = text.find(term, start + len(term))
        return [RecognizerResult(entity_type=self._kind, start=a, end=b, score=1.0) for a, b in found]
