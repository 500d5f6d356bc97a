from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.annotations import SourceSpan, resolve_label, resolve_overlaps
from common.errors import DataError
from common.labels import LabelSchema
from common.records import EntitySpan

PATH = Path("x.ann")


def source(start, end, label="A", *, line=1, is_cut=False):
    return SourceSpan(start=start, end=end, label=label, line=line, name=f"T{line}", is_cut=is_cut)


def offsets(spans):
    return [(span.start, span.end) for span in spans]


def test_the_outermost_of_nested_spans_stays_and_the_first_of_equal_ones():
    counts = Counter()
    spans = [source(2, 4), source(0, 9), source(5, 9), source(9, 12, "B"), source(9, 12, "C")]
    kept = resolve_overlaps(spans, counts, PATH, allow_nested=True)
    assert kept == (EntitySpan(start=0, end=9, label="A"), EntitySpan(start=9, end=12, label="B"))
    assert counts == {"dropped_nested": 3, "spans": 2, "spans.A": 1, "spans.B": 1}


@pytest.mark.parametrize("allow_nested", [True, False])
def test_crossing_spans_are_refused(allow_nested):
    with pytest.raises(DataError, match=r"x.ann, line 2: span T2 \[3, 8\) crosses T1 \[0, 5\) of line 1"):
        resolve_overlaps([source(0, 5), source(3, 8, line=2)], Counter(), PATH, allow_nested=allow_nested)


def test_nested_spans_are_refused_where_they_may_not_be():
    with pytest.raises(DataError, match="lies inside"):
        resolve_overlaps([source(0, 5), source(3, 5)], Counter(), PATH, allow_nested=False)


@pytest.mark.parametrize(
    ("cut_first", "kept"), [(True, (3, 8)), (False, (0, 5))], ids=["cut-is-left", "cut-is-right"]
)
def test_a_cut_span_gives_way_to_a_whole_one(cut_first, kept):
    counts = Counter()
    spans = [source(0, 5, is_cut=cut_first), source(3, 8, is_cut=not cut_first)]
    assert offsets(resolve_overlaps(spans, counts, PATH, allow_nested=True)) == [kept]
    assert counts["dropped_nested"] == 1


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 15), st.just(True)), max_size=15))
def test_what_is_kept_is_disjoint_and_everything_is_counted(raw):
    counts = Counter()
    spans = [source(start, start + length, is_cut=cut) for start, length, cut in raw]
    kept = offsets(resolve_overlaps(spans, counts, PATH, allow_nested=True))
    assert all(end <= start for (_, end), (start, _) in pairwise(kept))
    assert counts["spans"] + counts["dropped_nested"] == len(spans)
    assert counts["spans"] == len(kept)


def test_labels_are_mapped_dropped_with_a_count_or_refused():
    schema = LabelSchema(entity_types=("A",), mapping={"a": "A", "noise": ""})
    counts = Counter()
    assert resolve_label("a", schema, counts, PATH, 3) == "A"
    assert resolve_label("noise", schema, counts, PATH, 3) == ""
    assert counts == {"dropped_by_mapping": 1}
    with pytest.raises(DataError, match=r"x.ann, line 3: label 'B' is not in the schema"):
        resolve_label("B", schema, counts, PATH, 3)
