"""Word lists that augmentation and the robustness check draw from, read from tab-separated files.

They hold public knowledge, not records, so a message may name a line; it never quotes one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import DataError
from common.text_files import read_lines


@dataclass(frozen=True, kw_only=True, slots=True)
class Lexicon:
    """Entries by key: synonyms by lower-case word, or mentions by entity type.

    Attributes:
        entries: At least one value for each key, without repetition, in the file's order.
        skipped: Empty lines and comments (`# ...`) that were passed over.
    """

    entries: Mapping[str, tuple[str, ...]] = field(repr=False)
    skipped: int = 0


def read_synonyms(path: Path, *, sha256: str = "") -> Lexicon:
    """Read `word<TAB>synonym<TAB>synonym...` lines.

    Args:
        path: The file, UTF-8.
        sha256: What its hash must be, in hexadecimal; "" takes any file.

    Raises:
        DataError: The file cannot be read, has another hash, or a line has no synonym.
    """
    entries: dict[str, list[str]] = {}
    skipped = 0
    for number, cells in _rows(path, sha256):
        if cells is None:
            skipped += 1
            continue
        word, *synonyms = cells
        if not synonyms or not all(cells):
            raise DataError(
                "the line is not `word<TAB>synonym<TAB>...` with something in each cell.",
                path=path,
                line=number,
            )
        entries.setdefault(word.lower(), []).extend(synonyms)
    return _lexicon(entries, skipped, path)


def read_mentions(path: Path, *, sha256: str = "", entity_types: tuple[str, ...] | None = None) -> Lexicon:
    """Read `type<TAB>mention` lines.

    Args:
        path: The file, UTF-8.
        sha256: What its hash must be, in hexadecimal; "" takes any file.
        entity_types: The types that may occur; None allows any.

    Raises:
        DataError: The file cannot be read, has another hash, or a line is not of a known type.
    """
    entries: dict[str, list[str]] = {}
    skipped = 0
    for number, cells in _rows(path, sha256):
        if cells is None:
            skipped += 1
            continue
        if len(cells) != 2 or not all(cells):
            raise DataError("the line is not `type<TAB>mention`.", path=path, line=number)
        if entity_types is not None and cells[0] not in entity_types:
            raise DataError(
                f"the type is none of {', '.join(entity_types)}; correct it or remove the line.",
                path=path,
                line=number,
            )
        entries.setdefault(cells[0], []).append(cells[1])
    return _lexicon(entries, skipped, path)


def _rows(path: Path, sha256: str) -> Iterator[tuple[int, list[str] | None]]:
    """Yield each line's number and cells; None for an empty line or a comment."""
    if sha256:
        _require_hash(path, sha256)
    for number, line in read_lines(path):
        bare = line.strip()
        if not bare or bare.startswith("#"):
            yield number, None
        else:
            yield number, [" ".join(cell.split()) for cell in line.split("\t")]


def _require_hash(path: Path, sha256: str) -> None:
    """Raise unless the file is the one that was agreed on."""
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}).", path=path) from error
    if found != sha256:
        raise DataError(
            f"the file's SHA-256 is {found[:12]}..., and the plan says {sha256[:12]}...; it is not the list that "
            "was agreed on.",
            path=path,
        )


def _lexicon(entries: Mapping[str, list[str]], skipped: int, path: Path) -> Lexicon:
    """Return the entries without repetition."""
    if not entries:
        raise DataError("the file has no entry.", path=path)
    unique = {key: tuple(dict.fromkeys(values)) for key, values in entries.items()}
    return Lexicon(entries=unique, skipped=skipped)
