"""Surrogates: made-up values in place of real ones, the same value for the same thing within one patient.

Which value is chosen follows from a keyed hash (HMAC-SHA256 under the site's secret) of the patient, the type and the
text, so that nothing has to be remembered, notes may come in any order, and another patient of the same name gets
another value. Whoever has the secret can test guesses: it is kept like a key.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import regex  # type: ignore[import-untyped]
from faker import Faker

from client.phi import AGE, DATE, EMAIL, ID, LOCATION, ORGANIZATION, PERSON, PHONE, PROFESSION, URL, WARD
from client.preprocessing import Rejected
from client.surrogate_dates import ImpossibleDate, shift_date

LOCALES: Mapping[str, str] = {"en": "en_US", "es": "es_ES", "zh": "zh_CN"}

IMPOSSIBLE_DATE = "impossible-date"
IMPOSSIBLE_AGE = "impossible-age"

OLDEST = 89
"""Ages above are one group, written 90 (HIPAA Safe Harbor, 45 CFR 164.514(b)(2)(i)(C))."""

_OLDEST_EVER = 130
_FURTHEST_SHIFT = 365

_DOMAIN = b"fedward surrogates v1"
_NAME_PARTS = regex.compile(r"\p{Han}+|[\p{L}\p{M}'’]+")
_PARTICLES = frozenset(
    "de del la las los y i da do dos van von der den bin al san md rn np pa".split()  # noqa: SIM905
)
_HAN = regex.compile(r"\p{Han}")
_AGE_WORDS = regex.compile(
    r"(?P<en>ninety)(?:-\w+)?|(?P<es>noventa)(?:[ ]y[ ]\w+)?|(?P<zh>九十)[一二三四五六七八九]?(?P<rest>.*)",
    regex.IGNORECASE,
)
_YOUNG = regex.compile(
    r"[ -]*(?:mes|month|d[íi]a|day|sem|week|hora|hour|个?月|天|周(?!岁))", regex.IGNORECASE
)
"""Units of an age that are shorter than years, after its number."""
_ORGANIZATIONS = {"en": "{} Hospital", "es": "Hospital {}", "zh": "{}医院"}
_WARDS = {"en": "Ward {}", "es": "Planta {}", "zh": "{}病区"}


@dataclass(frozen=True, kw_only=True)
class Surrogates:
    """Makes surrogates.

    Attributes:
        secret: The site's secret, at least 16 bytes.
        languages: The languages of the notes; the first one decides where a text does not.
        day_first: Whether `3/4/2016` is the third of April.
    """

    secret: bytes = field(repr=False)
    languages: Sequence[str]
    day_first: bool

    def replace(self, kind: str, text: str, patient: str) -> str | None:
        """Return what stands in place of a PHI text; None where its type or form has no surrogate.

        Args:
            kind: The PHI type.
            text: The PHI.
            patient: Whom the note is about; values agree within one patient.

        Raises:
            Rejected: A date that no calendar has, or an age that nobody reaches.
        """
        maker = self._makers.get(kind)
        return None if maker is None else maker(text, patient)

    def shift(self, patient: str) -> int:
        """Return by how many days the dates of a patient are moved: 1 to 365, either way."""
        number = int.from_bytes(self._digest("offset", "", patient)[:8], "big") % (2 * _FURTHEST_SHIFT)
        return number - _FURTHEST_SHIFT if number < _FURTHEST_SHIFT else number - _FURTHEST_SHIFT + 1

    @cached_property
    def _makers(self) -> Mapping[str, Callable[[str, str], str | None]]:
        """PHI type to what makes its surrogates."""
        return {
            PERSON: self._person,
            DATE: self._date,
            AGE: self._age,
            PHONE: lambda text, patient: self._like(PHONE, text, patient),
            ID: lambda text, patient: self._like(ID, text, patient),
            EMAIL: self._email,
            URL: lambda text, patient: (
                f"https://www.example.org/{self._digest(URL, text, patient).hex()[:8]}"
            ),
            LOCATION: self._location,
            ORGANIZATION: self._organization,
            WARD: lambda text, patient: self._format(
                _WARDS, text, str(self._number(WARD, text, patient, 89) + 10)
            ),
            PROFESSION: lambda text, patient: str(self._faker(PROFESSION, text, patient).job()),
        }

    def _digest(self, kind: str, text: str, patient: str, counter: int = 0) -> bytes:
        """Return 32 keyed bytes for a text of a patient; what is written alike but for case counts as one."""
        folded = " ".join(unicodedata.normalize("NFC", text).casefold().split())
        parts = [part.encode() for part in (kind, patient, folded, str(counter))]
        message = _DOMAIN + b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return hmac.digest(self.secret, message, hashlib.sha256)

    def _number(self, kind: str, text: str, patient: str, below: int) -> int:
        """Return a keyed number from 0."""
        return int.from_bytes(self._digest(kind, text, patient)[:8], "big") % below

    def _language(self, text: str) -> str:
        """Return the language whose names and places suit a text."""
        if _HAN.search(text):
            return "zh"
        return next((code for code in self.languages if code != "zh"), "en")

    def _format(self, forms: Mapping[str, str], text: str, value: str) -> str:
        """Return a value in the form of the text's language."""
        return forms[self._language(text)].format(value)

    def _faker(self, kind: str, text: str, patient: str) -> Any:
        """Return Faker in the text's language, seeded for this text of this patient."""
        faker = _faker(LOCALES[self._language(text)])
        faker.seed_instance(int.from_bytes(self._digest(kind, text, patient), "big"))
        return faker

    def _pick(self, kind: str, text: str, patient: str, choices: Sequence[str]) -> str:
        """Return a keyed choice that is not the text itself."""
        index = self._number(kind, text, patient, len(choices))
        chosen = choices[index]
        return choices[(index + 1) % len(choices)] if chosen.casefold() == text.casefold() else chosen

    def _person(self, text: str, patient: str) -> str:
        """Return a name of the same build: each part of it has its own surrogate, whatever it stands beside."""
        return str(_NAME_PARTS.sub(lambda match: self._name_part(match.group(), patient), text))

    def _name_part(self, part: str, patient: str) -> str:
        """Return the surrogate of one part of a name."""
        names = _names(LOCALES[self._language(part)])
        if _HAN.search(part):
            length = 2 if part[:2] in names.family else 1
            given = "".join(self._pick("given", sign, patient, names.signs) for sign in part[length:])
            return self._pick("family", part[:length], patient, names.short_family) + given
        if part.casefold() in _PARTICLES:
            return part
        if len(part) == 1:
            return self._like(PERSON, part, patient)
        folded = part.casefold()
        pool = next((pool for pool in (names.female, names.male) if folded in pool), names.family)
        chosen = self._pick(PERSON, part, patient, tuple(pool.values()))
        return chosen.upper() if part.isupper() else chosen

    def _date(self, text: str, patient: str) -> str | None:
        """Return the date, moved by the patient's offset."""
        try:
            return shift_date(text, self.shift(patient), day_first=self.day_first)
        except ImpossibleDate:
            raise Rejected(IMPOSSIBLE_DATE) from None

    def _age(self, text: str, patient: str) -> str | None:
        """Return the age, 90 in place of any above 89."""
        digits = regex.search(r"\d+", text)
        if digits is None:
            words = _AGE_WORDS.fullmatch(text)
            if words is None:
                return None
            ninety = next(words[name] for name in ("en", "es", "zh") if words[name])
            return f"{ninety}{words['rest'] or ''}"
        age = int(digits.group())
        in_years = _YOUNG.match(text, digits.end()) is None
        if in_years and age > _OLDEST_EVER:
            raise Rejected(IMPOSSIBLE_AGE)
        if not in_years or age <= OLDEST:
            return text
        return text[: digits.start()] + str(OLDEST + 1) + text[digits.end() :]

    def _like(self, kind: str, text: str, patient: str) -> str:
        """Return a text of the same form: digits for digits, letters for letters, signs as they are."""
        made = text
        counter = 0
        while made == text and counter < 100:
            stream = iter(self._stream(kind, text, patient, counter))
            made = "".join(_like_sign(sign, stream) for sign in text)
            counter += 1
        return made

    def _stream(self, kind: str, text: str, patient: str, counter: int) -> bytes:
        """Return a keyed byte for each sign of a text."""
        blocks = -(-len(text) // 32)
        return b"".join(self._digest(kind, text, patient, counter * 1000 + block) for block in range(blocks))

    def _email(self, text: str, patient: str) -> str:
        """Return an address under a domain that nobody can own (RFC 2606)."""
        return f"{self._digest(EMAIL, text, patient).hex()[:10]}@example.org"

    def _location(self, text: str, patient: str) -> str:
        """Return a postal code, a street address or a place, as the text is one."""
        if not regex.search(r"\p{L}", text):
            return self._like(LOCATION, text, patient)
        faker = self._faker(LOCATION, text, patient)
        made = str(faker.street_address() if regex.search(r"\d", text) else faker.city())
        return ", ".join(made.split("\n")).strip()

    def _organization(self, text: str, patient: str) -> str:
        """Return a hospital that is called after somebody."""
        names = _names(LOCALES[self._language(text)])
        return self._format(
            _ORGANIZATIONS, text, self._pick(ORGANIZATION, text, patient, tuple(names.family.values()))
        )


@dataclass(frozen=True, kw_only=True)
class _Names:
    """Faker's names of one country: folded name to name.

    Attributes:
        female: Given names of women.
        male: Given names of men.
        family: Family names.
        signs: Single signs of given names, for Chinese.
        short_family: Family names of one sign, for Chinese.
    """

    female: Mapping[str, str]
    male: Mapping[str, str]
    family: Mapping[str, str]
    signs: tuple[str, ...]
    short_family: tuple[str, ...]


_fakers: dict[str, Any] = {}
_known_names: dict[str, _Names] = {}


def _faker(locale: str) -> Any:
    """Return Faker in a locale, made once."""
    if locale not in _fakers:
        _fakers[locale] = Faker(locale)
    return _fakers[locale]


def _names(locale: str) -> _Names:
    """Return the names of a locale, read once."""
    if locale not in _known_names:
        provider = importlib.import_module(f"faker.providers.person.{locale}").Provider
        tables = [
            {name.casefold(): name for name in dict.fromkeys(getattr(provider, table))}
            for table in ("first_names_female", "first_names_male", "last_names")
        ]
        given = sorted({sign for table in tables[:2] for name in table for sign in name})
        _known_names[locale] = _Names(
            female=tables[0],
            male=tables[1],
            family=tables[2],
            signs=tuple(given),
            short_family=tuple(name for name in tables[2] if len(name) == 1),
        )
    return _known_names[locale]


def _like_sign(sign: str, stream: Any) -> str:
    """Return a sign of the same class; the stream gives one byte for each."""
    byte = next(stream)
    if sign.isdecimal():
        return str(byte % 10)
    if sign.isascii() and sign.isalpha():
        return chr(ord("A" if sign.isupper() else "a") + byte % 26)
    return sign
