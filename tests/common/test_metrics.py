import json

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from seqeval.metrics import classification_report
from seqeval.scheme import IOB2

from common.errors import ValidationError
from common.labels import LabelSchema
from common.metrics import EntityCounts, Tally, TokenCounts, count_entities, count_tokens

SCHEMA = LabelSchema(entity_types=("A", "B", "C"))
TAGS = st.lists(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(*[st.lists(st.integers(0, SCHEMA.num_tags - 1), min_size=n, max_size=n)] * 2)
    ),
    min_size=1,
    max_size=6,
)


def names(ids):
    return [SCHEMA.tags[number] for number in ids]


@given(TAGS)
def test_entity_scores_are_those_of_seqeval_strict(pairs):
    counts = count_entities(pairs, SCHEMA)
    assume(any(tally.is_seen for tally in counts.tallies.values()))
    report = classification_report(
        [names(gold) for gold, _ in pairs],
        [names(predicted) for _, predicted in pairs],
        mode="strict",
        scheme=IOB2,
        output_dict=True,
        zero_division=0,
    )
    table = counts.scores()
    ours = {name: row for name, row in table.per_class.items() if counts.tallies[name].is_seen}
    ours |= {"micro avg": table.micro, "macro avg": table.macro, "weighted avg": table.weighted}
    assert ours.keys() == report.keys()
    for name, row in ours.items():
        assert row.support == report[name]["support"]
        got = (row.precision, row.recall, row.f1)
        wanted = tuple(report[name][key] for key in ("precision", "recall", "f1-score"))
        assert got == pytest.approx(wanted, rel=1e-14, abs=0)


@given(TAGS, TAGS)
def test_counts_of_parts_add_up_to_the_counts_of_the_whole(first, second):
    for count in (count_entities, count_tokens):
        assert count(first, SCHEMA) + count(second, SCHEMA) == count(first + second, SCHEMA)


@given(TAGS, TAGS)
def test_vectors_add_as_counts_do(first, second):
    for count, kind in ((count_entities, EntityCounts), (count_tokens, TokenCounts)):
        vector = count(first, SCHEMA).to_vector(SCHEMA) + count(second, SCHEMA).to_vector(SCHEMA)
        assert vector.dtype == np.float32
        assert kind.from_vector(vector, SCHEMA) == count(first + second, SCHEMA)


@given(TAGS)
def test_token_counts_hold_every_word_once(pairs):
    tallies = count_tokens(pairs, SCHEMA).tallies
    num_words = sum(len(gold) for gold, _ in pairs)
    assert sum(tally.support for tally in tallies.values()) == num_words
    assert sum(tally.tp + tally.fp for tally in tallies.values()) == num_words
    assert sum(t.fp for t in tallies.values()) == sum(t.fn for t in tallies.values())


def test_a_border_off_by_one_is_wrong_for_entities_and_nearly_right_for_tokens():
    pairs = [([1, 2, 2, 0], [1, 2, 0, 0])]
    assert count_entities(pairs, SCHEMA).tallies["A"] == Tally(tp=0, fp=1, fn=1)
    tokens = count_tokens(pairs, SCHEMA)
    assert tokens.tallies["O"] == Tally(tp=1, fp=1, fn=0)
    assert tokens.tallies["I-A"] == Tally(tp=1, fp=0, fn=1)


def test_zeros_are_neutral_and_score_nothing():
    counts = count_entities([([1], [1])], SCHEMA)
    assert counts + EntityCounts.zeros(SCHEMA) == counts
    table = EntityCounts.zeros(SCHEMA).scores()
    assert (table.micro.f1, table.macro.f1, table.weighted.f1) == (0.0, 0.0, 0.0)


def test_tables_and_counts_go_into_json():
    counts = count_tokens([([1, 2], [1, 0])], SCHEMA)
    assert json.loads(json.dumps(counts.to_dict()))["I-A"] == {"tp": 0, "fp": 0, "fn": 1}
    assert json.loads(json.dumps(counts.scores().to_dict()))["per_class"]["B-A"]["f1"] == 1.0


def test_counts_of_another_schema_or_kind_are_refused():
    other = LabelSchema(entity_types=("A",))
    counts = EntityCounts.zeros(SCHEMA)
    with pytest.raises(ValidationError, match="different classes"):
        counts + EntityCounts.zeros(other)
    with pytest.raises(ValidationError, match="another schema"):
        counts.to_vector(other)
    with pytest.raises(ValidationError, match=r"shape \(4,\)"):
        EntityCounts.from_vector(np.zeros(4), SCHEMA)
    with pytest.raises(ValidationError, match="negative"):
        EntityCounts.from_vector(np.full(9, -1.0), SCHEMA)


def test_a_prediction_per_word_is_needed():
    for count in (count_entities, count_tokens):
        with pytest.raises(ValidationError, match="1 predicted tags for 2 words"):
            count([([0, 0], [0])], SCHEMA)
        with pytest.raises(ValidationError, match="tag id 9"):
            count([([0], [9])], SCHEMA)
