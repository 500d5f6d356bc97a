"""From `[deidentification]` of a site.toml to the stage: lists, patterns, tagger and secret are opened here."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

from presidio_analyzer import EntityRecognizer

from client.deidentification import Deidentification
from client.deidentification_engine import LANGUAGES, PhiFinder, SiteLists
from client.deidentification_settings import DeidentificationTable
from client.keys import read_private, write_new_private
from client.surrogates import Surrogates
from common.errors import DataError, InputError, PlanError, ValidationError
from common.text_files import read_lines

_SECRET_BYTES = 32


def build_deidentification(table: DeidentificationTable, *, device: str = "auto") -> Deidentification:
    """Return the stage that a site's table describes.

    Args:
        table: The table, every path in it absolute.
        device: Where the tagger runs.

    Raises:
        PlanError: A pattern, language or label cannot be used, or a secret is missing.
        InputError: A list, the secret or the tagger cannot be opened.
    """
    surrogates = None
    if table.mode == "surrogate":
        if table.secret is None:
            raise PlanError(
                "deidentification.secret is missing; surrogates need one. Make it with 'fedward-site keys secret'."
            )
        surrogates = Surrogates(
            secret=load_site_secret(table.secret), languages=table.languages, day_first=is_day_first(table)
        )
    finder = build_finder(table, device=device)
    return Deidentification(finder.find, mode=table.mode, surrogates=surrogates, keep=table.keep)


def build_finder(
    table: DeidentificationTable, *, device: str = "auto", patterns: bool = True, tagger: bool = True
) -> PhiFinder:
    """Return what finds PHI; `patterns` and `tagger` leave one of the two out, for comparison."""
    others: Sequence[EntityRecognizer] = ()
    try:
        if tagger and table.tagger is not None:
            # torch comes in here, for sites that have a tagger.
            from client.deidentification_tagger import TaggerRecognizer

            others = [TaggerRecognizer.open(table.tagger, device=device, kinds=dict(table.tagger_map))]
        return PhiFinder(
            languages=table.languages,
            lists=read_site_lists(table),
            least=table.threshold,
            patterns=patterns,
            others=others,
        )
    except ValidationError as error:
        raise PlanError(f"[deidentification]: {error}") from None


def is_day_first(table: DeidentificationTable) -> bool:
    """Return whether `3/4/2016` is the third of April at this site."""
    if table.date_order == "auto":
        return LANGUAGES[table.languages[0]].day_first
    return table.date_order == "dmy"


def read_site_lists(table: DeidentificationTable) -> SiteLists:
    """Read the lists that a site's table names."""
    return SiteLists(
        staff=read_terms(table.staff) if table.staff else (),
        wards=read_terms(table.wards) if table.wards else (),
        mrn_patterns=table.mrn_patterns,
        allowed=read_terms(table.allowed) if table.allowed else (),
    )


def read_terms(path: Path) -> tuple[str, ...]:
    """Read a list of terms, one a line.

    Raises:
        DataError: The file cannot be read, or a line of it is empty.
    """
    if not path.is_file():
        raise DataError("does not exist; give a text file with one term a line.", path=path)
    terms = []
    for number, line in read_lines(path):
        if not line.strip():
            raise DataError("is empty; a list has one term a line.", path=path, line=number)
        terms.append(line.strip())
    return tuple(terms)


def make_site_secret(path: Path) -> None:
    """Make a new secret for surrogates, mode 0600.

    Raises:
        InputError: The file exists, or cannot be made.
    """
    write_new_private(path, secrets.token_hex(_SECRET_BYTES).encode() + b"\n", what="site's secret")


def load_site_secret(path: Path) -> bytes:
    """Read the secret, 32 bytes.

    Raises:
        InputError: It is missing, open to others, or not a secret.
    """
    raw = read_private(path, what="site's secret")
    try:
        secret = bytes.fromhex(raw.decode("ascii").strip())
    except ValueError:
        secret = b""
    if len(secret) != _SECRET_BYTES:
        raise InputError(f"{path}: this is not a site's secret; make one with 'fedward-site keys secret'.")
    return secret
