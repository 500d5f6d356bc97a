"""Words that negate a finding, in English, Spanish, German and Chinese: no stage joins or drops one.

A list, not a parser: what cleaning must never touch is the cue itself, and a cue too many only leaves a line
break or a copy where it was. The lists follow the pre- and post-negations of NegEx (Chapman et al., "A simple
algorithm for identifying negated findings and diseases in discharge summaries", J. Biomed. Inform. 34, 2001)
and their usual translations.
"""

from __future__ import annotations

import hashlib

import regex  # type: ignore[import-untyped]

_WORDS = (
    "nothing|nobody|none|non|nor|no|not|never|neither|without|denies|denied|denying|deny|negatives|negative"
    "|absent|absence|lacks|lacking|cannot|rules|ruled|r/o|w/o"
    "|sin|ni|niega|negado|negada|ningunas?|ningún|negativos?|negativas?|ausencia|ausente|descarta|descartado"
    "|tampoco|nunca|jamás"
    "|keine[nmrs]?|kein|nicht|ohne|weder|niemals|nie|verneint|negativ|fehlende|fehlend"
)
_CHINESE = "否认|没有|未见|未及|未|无|無|不|非|否|阴性|排除"

_CUE = regex.compile(
    rf"(?<![\p{{L}}\p{{M}}\p{{N}}])(?:{_WORDS}|\p{{L}}+n['’]t)(?![\p{{L}}\p{{M}}\p{{N}}])|{_CHINESE}",
    regex.IGNORECASE,
)


def cues(text: str) -> list[tuple[int, int]]:
    """Return the characters `[start, end)` of each negation cue, in order."""
    return [found.span() for found in _CUE.finditer(text)]


def has_cue(text: str) -> bool:
    """Return whether a text negates something."""
    return _CUE.search(text) is not None


def ends_with_cue(line: str) -> bool:
    """Return whether the last word of a line is a cue; punctuation after it ends its scope."""
    stripped = line.rstrip()
    return any(end == len(stripped) for _, end in cues(stripped))


def begins_with_cue(line: str) -> bool:
    """Return whether the first word of a line is a cue."""
    found = _CUE.search(line)
    return found is not None and not line[: found.start()].strip()


def cue_digest(text: str) -> int:
    """Return 64 bits of a hash over the cues of a text, in order: texts that differ in a cue differ in it."""
    joined = "\x1f".join(found.group().casefold() for found in _CUE.finditer(text))
    return int.from_bytes(hashlib.blake2b(joined.encode(), digest_size=8).digest(), "big")
