"""Raw text into words with exact character offsets, for notes whose source is not tokenised.

A word is the smallest thing that can be an entity, so the rule is fine-grained and needs no language:

1. A flag, a keycap, or an emoji with its skin tones, variation selectors and joined parts is one word.
2. A letter of a script written without spaces (Han, Hiragana, Katakana, Thai, Lao, Khmer, Myanmar,
   Tibetan), with its combining marks, is one word.
3. A run of letters and digits of other scripts, with combining marks and invisible joiners inside, is one
   word: `Gly23`, `décès`, `हिन्दी`.
4. Every other visible character (punctuation, symbol) with its combining marks is one word.

White space, control characters, the zero width space and stray format characters are in no word. The
pattern backtracks nowhere, so the time is linear in the text. It is written for the `regex` package,
because Python's own `re` knows neither scripts nor combining marks.
"""

from __future__ import annotations

from dataclasses import dataclass

import regex  # type: ignore[import-untyped]

_WORD = regex.compile(
    r"""
    \p{Regional_Indicator}{2}
    | [0-9\#*]\uFE0F?\u20E3
    | (?V1:[\p{Extended_Pictographic}--[©®™]])
      [\uFE0E\uFE0F\p{Emoji_Modifier}\U000E0020-\U000E007F]*+
      (?:\u200D\p{Extended_Pictographic}[\uFE0E\uFE0F\p{Emoji_Modifier}]*+)*+
    | UNSPACED\p{M}*+
    | RUN\p{M}*+(?:JOINER*+RUN\p{M}*+)*+
    | (?V1:[\S--[\p{Cc}\p{Cf}\p{Zs}]])\p{M}*+
    """.replace("JOINER", r"(?V1:[\p{Cf}--[\u200B\uFEFF]])")
    .replace("UNSPACED", r"(?V1:[[\p{L}\p{N}]&&SCRIPTS])")
    .replace("RUN", r"(?V1:[[\p{L}\p{N}]--SCRIPTS])")
    .replace(
        "SCRIPTS",
        r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}"
        r"\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}\p{Script=Tibetan}]",
    ),
    regex.VERBOSE,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class WordSplitter:
    """Splits text by the rule of this module; the same text always gives the same words."""

    def split(self, text: str) -> tuple[tuple[int, int], ...]:
        """Return the character offsets `[start, end)` of the words, in order, disjoint, never empty."""
        return tuple(match.span() for match in _WORD.finditer(text))
