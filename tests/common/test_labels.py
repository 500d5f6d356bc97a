from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ValidationError
from common.labels import LabelSchema, spans_to_tags, tags_to_spans
from common.records import EntitySpan

SCHEMA = LabelSchema(entity_types=("Disease", "Drug"), mapping={"SpecificDisease": "Disease", "Modifier": ""})
# Chinese, accents as one and as two characters, an emoji with a skin tone, a surrogate-range symbol.
WORDS = ("cáncer", "患", "者", "de\u0301ce\u0300s", "👩🏽", "𝕏", "a", "-", "نوع")


def span(start, end, label="Disease"):
    return EntitySpan(start=start, end=end, label=label)


@st.composite
def tagged_words(draw):
    """Words with gaps of any width, and disjoint entities on whole words."""
    words, start = [], draw(st.integers(0, 2))
    for word in draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=30)):
        words.append((start, start + len(word)))
        start += len(word) + draw(st.integers(0, 2))
    cuts = sorted(draw(st.sets(st.integers(0, len(words)), max_size=len(words) + 1)))
    spans = []
    for first, end in pairwise(cuts):
        label = draw(st.sampled_from(["", *SCHEMA.entity_types]))
        if label:
            spans.append(span(words[first][0], words[end - 1][1], label))
    return words, tuple(spans)


@given(tagged_words())
def test_spans_on_words_survive_the_round_trip(case):
    words, spans = case
    tags = spans_to_tags(spans, words, SCHEMA)
    assert tags_to_spans(tags.tag_ids, words, SCHEMA) == spans
    assert (tags.num_spans, tags.num_widened, tags.num_lost) == (len(spans), 0, 0)


@given(st.lists(st.integers(0, SCHEMA.num_tags - 1), max_size=40))
def test_strict_reading_keeps_exactly_what_opens_with_b(tag_ids):
    chunks = SCHEMA.tags_to_chunks(tag_ids)
    assert [first for first, _, _ in chunks] == [i for i, tag in enumerate(tag_ids) if tag % 2 == 1]
    again = SCHEMA.chunks_to_tags(chunks, len(tag_ids))
    assert SCHEMA.tags_to_chunks(again) == chunks


def test_tag_ids_are_o_then_b_and_i_of_each_type():
    assert SCHEMA.tags == ("O", "B-Disease", "I-Disease", "B-Drug", "I-Drug")
    assert SCHEMA.num_tags == 5
    assert [SCHEMA.tag_id(tag) for tag in SCHEMA.tags] == [0, 1, 2, 3, 4]


def test_an_i_of_another_type_ends_the_entity_and_is_none_itself():
    assert SCHEMA.tags_to_chunks([1, 4, 2, 3, 4]) == [(0, 1, "Disease"), (3, 5, "Drug")]


@pytest.mark.parametrize(
    ("spans", "tag_ids", "widened", "lost"),
    [
        ([span(1, 3)], [1, 0, 0], 1, 0),
        ([span(3, 9)], [1, 2, 0], 1, 0),
        ([span(4, 5)], [0, 0, 0], 0, 1),
        ([span(4, 9)], [0, 1, 0], 0, 0),
        # Both spans end inside the first word: it goes to the first, the second gets none.
        ([span(0, 2), span(2, 4, "Drug")], [1, 0, 0], 1, 1),
        ([span(0, 2), span(2, 9, "Drug")], [1, 3, 0], 1, 0),
        ([span(20, 25)], [0, 0, 0], 0, 1),
    ],
)
def test_a_word_belongs_to_the_first_span_that_it_overlaps(spans, tag_ids, widened, lost):
    tags = spans_to_tags(spans, [(0, 4), (5, 9), (10, 14)], SCHEMA)
    assert (tags.tag_ids, tags.num_widened, tags.num_lost) == (tag_ids, widened, lost)


@pytest.mark.parametrize("spans", [[span(0, 5), span(4, 9)], [span(5, 9), span(0, 4)], [span(3, 3)]])
def test_overlapping_unordered_and_empty_spans_are_refused(spans):
    with pytest.raises(ValidationError, match="must not overlap"):
        spans_to_tags(spans, [(0, 4), (5, 9)], SCHEMA)


def test_source_labels_are_renamed_dropped_or_refused():
    assert SCHEMA.resolve("SpecificDisease") == "Disease"
    assert SCHEMA.resolve("Drug") == "Drug"
    assert SCHEMA.resolve("Modifier") == ""
    with pytest.raises(ValidationError, match="label 'Gene' is not in the schema"):
        SCHEMA.resolve("Gene")


def test_an_unknown_tag_names_the_nearest_one():
    with pytest.raises(ValidationError, match="Did you mean 'B-Disease'"):
        SCHEMA.tag_id("B-Diseases")


def test_ids_outside_the_schema_are_refused():
    with pytest.raises(ValidationError, match="tag id 5"):
        SCHEMA.tags_to_chunks([0, 5])
    with pytest.raises(ValidationError, match="1 tags for 2 words"):
        tags_to_spans([0], [(0, 1), (2, 3)], SCHEMA)


@pytest.mark.parametrize(
    ("types", "mapping", "message"),
    [
        ((), {}, "at least one"),
        (("A", "A"), {}, "repeats"),
        (("A b",), {}, "white space"),
        (("O",), {}, "not 'O'"),
        (("A",), {"x": "B"}, "sends 'x' to 'B'"),
    ],
)
def test_unusable_schemas_are_refused(types, mapping, message):
    with pytest.raises(ValidationError, match=message):
        LabelSchema(entity_types=types, mapping=mapping)
