"""Made-up mentions that no known text holds: the front of one word joined to the end of another."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence

_TRIES = 20


def unseen_mention(mentions: Sequence[str], known: Collection[str], rng: random.Random) -> str | None:
    """Return a mention like the given ones that is none of the known ones, or None if chance finds none.

    The number of words and all but one of them are those of a real mention; in one word, the longest, the second
    half is that of another mention's word (`carcinoma` and `fibrosis` may give `carcirosis`).

    Args:
        mentions: Mentions of one type; at least two different ones are needed.
        known: Mentions in lower case that must not come out.
        rng: The randomness.
    """
    if len(set(mentions)) < 2:
        return None
    for _ in range(_TRIES):
        front, end = rng.sample(mentions, 2)
        words = front.split()
        longest = max(range(len(words)), key=lambda i: len(words[i]))
        donor = max(end.split(), key=len)
        words[longest] = words[longest][: (len(words[longest]) + 1) // 2] + donor[len(donor) // 2 :]
        made = " ".join(words)
        if made.lower() not in known:
            return made
    return None


def unseen_lexicon(
    mentions: Mapping[str, Sequence[str]], known: Collection[str], rng: random.Random, *, size: int
) -> dict[str, tuple[str, ...]]:
    """Return up to `size` different made-up mentions for each type.

    Args:
        mentions: Real mentions by type.
        known: Mentions in lower case that must not come out.
        rng: The randomness.
        size: At least 1.
    """
    found: dict[str, tuple[str, ...]] = {}
    for label, real in mentions.items():
        usable = [mention for mention in real if mention.split()]
        made = (unseen_mention(usable, known, rng) for _ in range(size))
        unique = tuple(dict.fromkeys(mention for mention in made if mention is not None))
        if unique:
            found[label] = unique
    return found
