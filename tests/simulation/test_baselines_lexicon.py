"""The lookup baseline, on notes small enough to score by hand."""

import pytest

from common.records import EntitySpan, Note
from simulation.baselines_lexicon import MentionLexicon, lexicon_baseline, unseen_share


def note(text: str, *spans: tuple[int, int, str]) -> Note:
    made = tuple(EntitySpan(start=start, end=end, label=label) for start, end, label in spans)
    return Note(note_id=text, text=text, spans=made)


def found(lexicon: MentionLexicon, text: str) -> list[str]:
    return [text[span.start : span.end] for span in lexicon.find(text)]


def test_notes_that_were_seen_score_one():
    notes = [note("acute gout today", (0, 10, "Disease")), note("aspirin given", (0, 7, "Drug"))]
    assert lexicon_baseline(notes, notes) == 1.0


def test_the_longest_mention_wins_and_case_does_not_matter():
    lexicon = MentionLexicon.from_notes(
        [note("gout", (0, 4, "Disease")), note("acute gout", (0, 10, "Disease"))]
    )
    assert found(lexicon, "Acute GOUT, gout") == ["Acute GOUT", "gout"]


def test_mentions_inside_words_are_not_found():
    lexicon = MentionLexicon.from_notes([note("cold", (0, 4, "Disease"))])
    assert found(lexicon, "scolding cold colder") == ["cold"]


def test_chinese_needs_no_spaces():
    lexicon = MentionLexicon.from_notes([note("\u80ba\u708e", (0, 2, "Disease"))])
    assert found(lexicon, "\u60a3\u80ba\u708e\u4e00\u5468") == ["\u80ba\u708e"]


def test_a_mention_that_is_mostly_no_entity_is_left_out():
    train = [note("cold", (0, 4, "Disease")), note("cold hands"), note("cold feet")]
    assert MentionLexicon.from_notes(train).labels == {}


def test_f1_counts_hits_misses_and_false_alarms():
    train = [note("gout", (0, 4, "Disease"))]
    # One hit, one false alarm, one miss: F1 = 2 * 1 / (2 + 2).
    test = [note("gout and asthma", (0, 4, "Disease"), (9, 15, "Disease")), note("Dr. Gout")]
    assert lexicon_baseline(train, test) == pytest.approx(0.5)
    assert unseen_share(train, test) == pytest.approx(0.5)


def test_a_wrong_label_is_wrong():
    assert lexicon_baseline([note("iron", (0, 4, "Drug"))], [note("iron", (0, 4, "Procedure"))]) == 0.0


def test_nothing_to_find_is_zero():
    assert lexicon_baseline([], [note("quiet night")]) == 0.0
    assert unseen_share([], [note("quiet night")]) == 0.0


def test_offsets_survive_letters_that_grow_when_lowered():
    # The capital dotted I of Turkish lowers to two characters.
    lexicon = MentionLexicon.from_notes([note("gout", (0, 4, "Disease"))])
    assert found(lexicon, "\u0130\u0130 gout") == ["gout"]
