"""Finding PHI in a text: Presidio's analyzer over the recognisers that a site asks for, and no connection.

Presidio runs on its no-op NLP engine, so that no language model is downloaded. Its own context words need such a
model; our patterns name their labels themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import regex  # type: ignore[import-untyped]
from presidio_analyzer import AnalyzerEngine, EntityRecognizer, PatternRecognizer, RecognizerRegistry
from presidio_analyzer.context_aware_enhancers import ContextAwareEnhancer
from presidio_analyzer.nlp_engine import NoOpNlpEngine
from presidio_analyzer.predefined_recognizers import (
    CreditCardRecognizer,
    DateRecognizer,
    EsNieRecognizer,
    EsNifRecognizer,
    EsPassportRecognizer,
    IbanRecognizer,
    IpRecognizer,
    NhsRecognizer,
    UkPostcodeRecognizer,
    UrlRecognizer,
    UsMbiRecognizer,
    UsSsnRecognizer,
)

from client.deidentification_chinese import CHINESE, ResidentNumbers
from client.deidentification_english import ENGLISH
from client.deidentification_patterns import SHARED, LanguagePatterns
from client.deidentification_recognizers import (
    EMAIL_LENGTH,
    LANGUAGE,
    CasedPatterns,
    CompiledRecognizer,
    OfflineEmails,
    PhoneNumbers,
    TermRecognizer,
)
from client.deidentification_spanish import SPANISH
from client.phi import EMAIL, ID, OF_PRESIDIO, PERSON, PHONE, WARD, PhiSpan, merged
from common.errors import ValidationError
from common.validation import require_choice

LANGUAGES: Mapping[str, LanguagePatterns] = {one.code: one for one in (ENGLISH, SPANISH, CHINESE)}

_ANY_DIGITS = r"\d{2}"
_OWN: Mapping[str, Sequence[tuple[Callable[[], PatternRecognizer], str]]] = {
    "en": (
        (UsSsnRecognizer, r"\d{3}[- .]?\d{2}[- .]?\d{4}"),
        (UsMbiRecognizer, r"\d[A-Z][A-Z\d]\d"),
        (NhsRecognizer, r"\d{3}[- ]?\d{3}[- ]?\d{4}"),
        (UkPostcodeRecognizer, r"\d[A-Za-z]{2}\b"),
    ),
    "es": (
        (EsNifRecognizer, r"\d{7}"),
        (EsNieRecognizer, r"\d{7}"),
        (EsPassportRecognizer, r"\d{6}(?<=[A-Za-z]{3}\d{6})"),
    ),
    "zh": ((ResidentNumbers, r"\d{17}"),),
}
"""Presidio's recognisers of a country's numbers, and what a text must hold for them to be run."""

_SHARED: Sequence[tuple[Callable[[], PatternRecognizer], str, int | None]] = (
    (DateRecognizer, r"\d[-/.]\d|\d-[A-Za-z]{3}|[A-Za-z]{3}-\d", 40),
    (IpRecognizer, r"\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{0,4}:", 60),
    (UrlRecognizer, r"://|(?i:www\.)", 500),
    (CreditCardRecognizer, r"\d{4}[ -]?\d{4}[ -]?\d{4}|\d{4}[ -]\d{6}", None),
    (IbanRecognizer, r"\d\d(?<=[A-Za-z]{2}\d\d)", None),
)


@dataclass(frozen=True, kw_only=True)
class SiteLists:
    """What only a site knows.

    Attributes:
        staff: Names of staff.
        wards: Names of wards, rooms and buildings.
        mrn_patterns: Patterns of record numbers, for the `regex` package.
        allowed: Terms that are never PHI, such as an eponym that is also a name.
    """

    staff: tuple[str, ...] = field(default=(), repr=False)
    wards: tuple[str, ...] = field(default=(), repr=False)
    mrn_patterns: tuple[str, ...] = ()
    allowed: tuple[str, ...] = field(default=(), repr=False)


class PhiFinder:
    """Finds PHI with patterns, the site's lists and further recognisers.

    Args:
        languages: Whose patterns are used, all of them on every text: `en`, `es`, `zh`.
        lists: The site's lists.
        least: The score from which a match counts, 0 to 1.
        patterns: Whether patterns and lists are used at all.
        others: Further Presidio recognisers, such as a trained tagger, registered under `LANGUAGE`.

    Raises:
        ValidationError: A language is unknown, or a pattern of the site cannot be used.
    """

    def __init__(
        self,
        *,
        languages: Sequence[str],
        lists: SiteLists | None = None,
        least: float = 0.4,
        patterns: bool = True,
        others: Sequence[EntityRecognizer] = (),
    ) -> None:
        lists = lists or SiteLists()
        for code in languages:
            require_choice("languages", code, LANGUAGES)
        recognizers: list[EntityRecognizer] = list(others)
        if patterns:
            recognizers += _pattern_recognizers([LANGUAGES[code] for code in dict.fromkeys(languages)], least)
            recognizers += _list_recognizers(lists, least)
        self._least = least
        self._allowed = frozenset(term.casefold() for term in lists.allowed)
        self._entities = sorted({kind for one in recognizers for kind in one.supported_entities})
        self._engine = AnalyzerEngine(
            registry=RecognizerRegistry(recognizers=recognizers, supported_languages=[LANGUAGE]),
            nlp_engine=_nlp_engine(),
            supported_languages=[LANGUAGE],
            context_aware_enhancer=_NoContext(),
        )

    def find(self, text: str) -> tuple[PhiSpan, ...]:
        """Return the PHI in a text: disjoint spans in order that cover all that any recogniser found.

        Raises:
            Rejected: A pattern took too long on this text.
        """
        if not self._entities:
            return ()
        results = self._engine.analyze(
            text, language=LANGUAGE, entities=self._entities, score_threshold=self._least
        )
        return merged(
            PhiSpan(start=one.start, end=one.end, kind=one.entity_type, score=one.score)
            for one in results
            if text[one.start : one.end].casefold() not in self._allowed
        )


class _NoContext(ContextAwareEnhancer):
    """Leaves scores as they are; Presidio's own copies every result to no end where there are no lemmas."""

    def __init__(self) -> None:
        super().__init__(0.0, 0.0, 0, 0)

    def enhance_using_context(self, text: str, raw_results: Any, *others: Any, **named: Any) -> Any:
        """Return the results."""
        return raw_results


def _nlp_engine() -> NoOpNlpEngine:
    """Return the engine that knows no language."""
    engine = NoOpNlpEngine(models=[{"lang_code": LANGUAGE, "model_name": ""}])
    engine.load()
    return engine


def _pattern_recognizers(languages: Sequence[LanguagePatterns], least: float) -> list[EntityRecognizer]:
    """Return Presidio's recognisers and ours for these languages, compiled."""
    regions = tuple(dict.fromkeys(region for one in languages for region in one.regions))
    own = [(*pair, None) for one in languages for pair in _OWN[one.code]]
    tables = [("shared", SHARED), *((one.code, one.patterns) for one in languages)]
    return [
        CompiledRecognizer(OfflineEmails(), kind=EMAIL, least=least, gate="@", near=EMAIL_LENGTH),
        CompiledRecognizer(PhoneNumbers(regions), kind=PHONE, least=least, gate=_ANY_DIGITS),
        *(
            CompiledRecognizer(
                made := kind(),
                kind=OF_PRESIDIO.get(made.supported_entities[0], ID),
                least=least,
                gate=gate,
                near=near,
            )
            for kind, gate, near in (*_SHARED, *own)
        ),
        *(
            CompiledRecognizer(
                CasedPatterns(kind, f"{name}-{kind.lower()}", patterns), kind=kind, least=least
            )
            for name, table in tables
            for kind, patterns in table.items()
        ),
    ]


def _list_recognizers(lists: SiteLists, least: float) -> list[EntityRecognizer]:
    """Return the recognisers of a site's lists that are not empty."""
    found: list[EntityRecognizer] = [
        TermRecognizer(kind, name, terms)
        for kind, name, terms in ((PERSON, "site-staff", lists.staff), (WARD, "site-wards", lists.wards))
        if terms
    ]
    if lists.mrn_patterns:
        for number, pattern in enumerate(lists.mrn_patterns):
            check_pattern(f"mrn_patterns[{number}]", pattern)
        scored = [(pattern, 1.0) for pattern in lists.mrn_patterns]
        found.append(CompiledRecognizer(CasedPatterns(ID, "site-mrn", scored), kind=ID, least=least))
    return found


def check_pattern(name: str, pattern: str) -> str:
    """Return a site's pattern if it compiles and does not match nothing at all.

    Raises:
        ValidationError: It cannot be used.
    """
    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise ValidationError(f"{name} is {pattern!r}, which is not a pattern: {error}.") from None
    if compiled.fullmatch("") is not None:
        raise ValidationError(
            f"{name} is {pattern!r}, which matches an empty text; it must need a character."
        )
    return pattern
