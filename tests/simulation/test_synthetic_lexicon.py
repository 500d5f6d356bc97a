"""The mention grammar: what is reserved for devel and test is never written in training."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.synthetic_chinese import CHINESE
from simulation.synthetic_english import ENGLISH
from simulation.synthetic_lexicon import (
    LABELS,
    NOTE_TYPES,
    MentionGrammar,
    house_subset,
    listed,
    reserved_split,
    stable_fraction,
)
from simulation.synthetic_public import PUBLIC_CHINESE, PUBLIC_ENGLISH

# Public parts that hospitals may also use: every public mention has another part beside them.
GENERAL = ("flank", "count")
LEXICONS = [ENGLISH, CHINESE, PUBLIC_ENGLISH, PUBLIC_CHINESE]


def draws(lexicon, split, label, *, house=None, seed=0, count=150):
    grammar = MentionGrammar(lexicon, split=split, seed=seed, house=house)
    rng = random.Random(seed)
    return {grammar.draw(label, rng) for _ in range(count)}


@pytest.mark.parametrize("lexicon", LEXICONS, ids=lambda lexicon: lexicon.locale)
@pytest.mark.parametrize("label", LABELS)
def test_training_never_writes_a_reserved_mention(lexicon, label):
    common = set(lexicon.common[label])
    for house in range(4):
        composed = draws(lexicon, "train", label, house=house, seed=7) - common
        assert composed
        assert {reserved_split(mention, seed=7) for mention in composed} == {"train"}


@pytest.mark.parametrize("lexicon", [ENGLISH, CHINESE], ids=["en", "zh"])
@pytest.mark.parametrize("label", LABELS)
def test_devel_and_test_have_reserved_mentions_of_their_own(lexicon, label):
    devel, test = (draws(lexicon, split, label, count=400) for split in ("devel", "test"))
    assert "devel" not in {reserved_split(mention, seed=0) for mention in test - set(lexicon.common[label])}
    assert "test" not in {reserved_split(mention, seed=0) for mention in devel - set(lexicon.common[label])}
    assert sum(reserved_split(mention, seed=0) == "test" for mention in test) > 20


@pytest.mark.parametrize("lexicon", LEXICONS, ids=lambda lexicon: lexicon.locale)
def test_shorthand_cannot_turn_one_mention_into_another(lexicon):
    # The reservation is of the full form; it holds for what is written only if no short form is a part.
    parts = {part for words in lexicon.parts.values() for part in words}
    assert not parts & set(lexicon.shorthand.values())


@pytest.mark.parametrize(("hospital", "public"), [(ENGLISH, PUBLIC_ENGLISH), (CHINESE, PUBLIC_CHINESE)])
def test_public_word_lists_are_disjoint_but_for_sides(hospital, public):
    own = {part for name, words in hospital.parts.items() if name != "amount" for part in words}
    other = {part for name, words in public.parts.items() if name not in GENERAL for part in words}
    assert not own & other
    assert not {m for ms in hospital.common.values() for m in ms} & {
        m for ms in public.common.values() for m in ms
    }
    for slots in public.patterns.values():
        assert all(any(f"{{{n}}}" in slot for n in public.parts if n not in GENERAL) for slot in slots)


@pytest.mark.parametrize("lexicon", LEXICONS, ids=lambda lexicon: lexicon.locale)
def test_lexicons_are_whole(lexicon):
    assert set(lexicon.sections) <= set(NOTE_TYPES) == set(ENGLISH.sections)
    assert set(lexicon.titles) == set(lexicon.sections)
    assert set(lexicon.patterns) == set(lexicon.common) == set(LABELS)
    for words in (*lexicon.parts.values(), *lexicon.common.values()):
        assert len(set(words)) == len(words) >= 2
        assert all(word == word.strip() != "" for word in words)


def test_listed_reads_both_commas():
    assert listed("one, two") == ("one", "two")
    assert listed("\u80be\u3001\u809d") == ("\u80be", "\u809d")


@given(st.lists(st.text(min_size=1), min_size=2, unique=True), st.floats(0.01, 1), st.integers())
def test_house_subset_keeps_order_and_share(items, share, key):
    kept = house_subset(items, share, key)
    assert [item for item in items if item in kept] == list(kept)
    assert 2 <= len(kept) <= len(items)
    assert len(kept) >= share * len(items) - 1e-9


@given(st.integers(), st.text())
def test_stable_fraction_is_stable_and_in_range(number, text):
    assert 0 <= stable_fraction(number, text) < 1
    assert stable_fraction(number, text) == stable_fraction(number, text)


def test_stable_fraction_is_the_same_in_every_process():
    assert round(stable_fraction("mention", 0, "gout"), 6) == 0.133326
