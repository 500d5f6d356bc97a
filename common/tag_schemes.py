"""The tag schemes of foreign files (IOB1, IOB2, IOBES, BILOU): detection, and reading into chunks.

Detection looks at a whole file (`TagStatistics`):

- `L-` or `U-` appears -> BILOU (also written BIOUL); `E-` or `S-` appears -> IOBES (also BIOES).
- Only `B-`, `I-` and `O`: every entity opens with `B-` -> IOB2. Otherwise, `B-` appears only straight after
  the same label -> IOB1. Otherwise the file keeps neither scheme and is *ambiguous*.

Stated rule for an ambiguous file: it is read as IOB2 in which an `I-X` that follows neither `B-X` nor `I-X`
opens an entity, and each such repair is counted. (A file without entities reads the same in all schemes.)

Reading: IOB1 and repaired IOB2 give the same chunks. IOBES and BILOU say everything twice, so a
broken transition there means a damaged file: it is reported as a violation, and the caller raises.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from common.errors import ValidationError
from common.labels import OUTSIDE, Chunk

_TAG = re.compile(r"([A-Z])[-_](\S+)")
# BILOU's last and unit are IOBES's end and single.
_CLOSING = {"E": "E", "L": "E", "S": "S", "U": "S"}


class TagScheme(StrEnum):
    """How a file marks where entities begin and end."""

    IOB1 = "IOB1"
    IOB2 = "IOB2"
    IOBES = "IOBES"
    BILOU = "BILOU"

    @property
    def prefixes(self) -> str:
        """The letters that may stand before a label."""
        return {"IOB1": "BI", "IOB2": "BI", "IOBES": "BIES", "BILOU": "BILU"}[self.value]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """Chunks of one tag sequence, and the indices of tags that break the scheme.

    Attributes:
        chunks: Entities in order, disjoint.
        violations: Indices of tags whose transition the scheme forbids; the chunks are as repaired.
    """

    chunks: tuple[Chunk, ...]
    violations: tuple[int, ...]


def split_tag(tag: str) -> tuple[str, str] | None:
    """Return `(prefix, label)` of a tag such as `B-Disease`, `("O", "")` of `O`, None of anything else."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    found = _TAG.fullmatch(tag)
    if found is None or found[1] not in "BIESLU":
        return None
    return found[1], found[2]


@dataclass
class TagStatistics:
    """What one file's tags have shown so far; feed it every sequence, then ask for the scheme.

    Attributes:
        prefixes: The prefix letters seen.
        opens_inside: Some entity opened with `I-`, which IOB2 forbids.
        begins_apart: Some `B-` did not follow the same label, which IOB1 forbids.
    """

    prefixes: set[str] = field(default_factory=set)
    opens_inside: bool = False
    begins_apart: bool = False

    def observe(self, tags: Sequence[tuple[str, str]]) -> None:
        """Take in one sequence of split tags."""
        previous = ""
        for prefix, label in tags:
            self.prefixes.add(prefix)
            self.opens_inside |= prefix == "I" and label != previous
            self.begins_apart |= prefix == "B" and label != previous
            previous = label

    @property
    def is_ambiguous(self) -> bool:
        """Whether the file keeps neither IOB1 nor IOB2."""
        return self.detect() is TagScheme.IOB2 and self.opens_inside

    def detect(self) -> TagScheme:
        """Return the scheme by the rule at the top of this module."""
        if self.prefixes & set("LU"):
            return TagScheme.BILOU
        if self.prefixes & set("ES"):
            return TagScheme.IOBES
        if self.opens_inside and not self.begins_apart:
            return TagScheme.IOB1
        return TagScheme.IOB2


def decode(tags: Sequence[tuple[str, str]], scheme: TagScheme) -> Decoded:
    """Read one sequence of split tags into chunks, noting each tag that breaks the scheme.

    A tag that cannot go on with the open entity opens a new one; an entity that IOBES or BILOU leaves
    open ends where the next begins.
    """
    chunks: list[Chunk] = []
    violations: list[int] = []
    first, open_label, closed = -1, "", True
    closes = scheme in (TagScheme.IOBES, TagScheme.BILOU)
    for index, (prefix, label) in enumerate((*tags, (OUTSIDE, ""))):
        part = _CLOSING.get(prefix, prefix)
        goes_on = part in ("I", "E") and label == open_label and not (closes and closed)
        goes_on = goes_on and prefix in scheme.prefixes
        if goes_on:
            closed = part == "E"
            continue
        if closes and not closed:
            violations.append(min(index, len(tags) - 1))
        if first >= 0:
            chunks.append((first, index, open_label))
        if _opens_wrongly(prefix, part, label, open_label, scheme):
            violations.append(index)
        first, open_label = (-1, "") if part == OUTSIDE else (index, label)
        closed = part in (OUTSIDE, "S", "E")
    return Decoded(chunks=tuple(chunks), violations=tuple(sorted(set(violations))))


def to_iob2(tags: Sequence[str], scheme: TagScheme) -> list[str]:
    """Rewrite a sequence of tags in IOB2, repaired where they break the scheme.

    Raises:
        ValidationError: A tag is neither `O` nor a prefix letter, a hyphen and a label.
    """
    parts = []
    for tag in tags:
        split = split_tag(tag)
        if split is None:
            raise ValidationError(
                f"{tag!r} is not a tag; a tag is O, or B-TYPE, I-TYPE, E-, S-, L- or U-TYPE."
            )
        parts.append(split)
    result = [OUTSIDE] * len(tags)
    for first, end, label in decode(parts, scheme).chunks:
        result[first:end] = [f"B-{label}"] + [f"I-{label}"] * (end - first - 1)
    return result


def _opens_wrongly(prefix: str, part: str, label: str, open_label: str, scheme: TagScheme) -> bool:
    """Return whether the scheme forbids that this tag opens an entity here."""
    if part != OUTSIDE and prefix not in scheme.prefixes:
        return True
    if scheme is TagScheme.IOB1:
        return part == "B" and label != open_label
    return part in ("I", "E")
