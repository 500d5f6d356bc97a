"""Charts are well-formed, true to their values, and escape what they are given."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.charts import HEIGHT, WIDTH, Series, bar_chart, line_chart, stacked, ticks


def parsed(html: str) -> ET.Element:
    return ET.fromstring(html)


def titles(html: str) -> list[str]:
    return [element.text or "" for element in parsed(html).iter("title")]


def test_a_line_has_a_dot_and_a_tooltip_for_each_round():
    html = line_chart("F1", [1, 2, 3], [Series(name="F1", values=[0.25, 0.5, 0.75])])
    assert titles(html) == [f"F1, round {r}: {v:.3f}" for r, v in ((1, 0.25), (2, 0.5), (3, 0.75))]
    heights = [float(dot.attrib["cy"]) for dot in parsed(html).iter("circle")]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.11)
    assert heights[0] > heights[2]


def test_a_gap_breaks_the_line():
    html = line_chart("F1", [1, 2, 3, 4, 5], [Series(name="F1", values=[0.1, 0.2, None, 0.3, 0.4])])
    (path,) = parsed(html).iter("path")
    assert re.sub(r"[-\d. ]", "", path.attrib["d"]) == "MLML"
    assert len(titles(html)) == 4


def test_a_loss_that_is_not_finite_is_a_gap():
    html = line_chart("Loss", [1, 2, 3], [Series(name="loss", values=[0.5, math.nan, math.inf])])
    assert titles(html) == ["loss, round 1: 0.500"]


def test_many_rounds_keep_one_dot_and_few_labels():
    html = line_chart("F1", range(1, 501), [Series(name="F1", values=[0.5] * 500)])
    assert len(titles(html)) == 1
    labels = [text.text for text in parsed(html).iter("text") if text.attrib["y"] == "228"]
    assert labels == ["50", "100", "150", "200", "250", "300", "350", "400", "450", "500"]


def test_an_axis_ends_at_what_can_be():
    html = line_chart("F1", [1], [Series(name="F1", values=[1.0])], highest=1.0)
    values = [text.text for text in parsed(html).iter("text") if text.attrib["text-anchor"] == "end"]
    assert values == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


def test_bars_stack_to_their_total():
    series = [Series(name="train", values=[3.0, 0.0]), Series(name="upload", values=[1.0, 2.0])]
    html = bar_chart("Seconds", [7, 8], series, unit="s", digits=1)
    assert titles(html) == ["train, round 7: 3.0 s", "upload, round 7: 1.0 s", "upload, round 8: 2.0 s"]
    tops = [float(bar.attrib["y"]) for bar in parsed(html).iter("rect")]
    scale = (tops[2] - tops[1]) / 2.0
    assert tops[0] - tops[1] == pytest.approx(scale * 1.0, abs=0.11)


@pytest.mark.parametrize("values", [[], [None], [None, None]])
def test_no_values_are_said_in_words(values):
    html = line_chart("Loss", range(len(values)), [Series(name="loss", values=values)])
    assert "No values were reported." in html
    assert "<svg" not in html


def test_names_are_escaped_and_a_legend_stands_only_where_it_is_needed():
    one = line_chart("<F1>", [1], [Series(name="<script>", values=[0.5])])
    two = line_chart("F1", [1], [Series(name="<b>", values=[0.5]), Series(name="c", values=[0.5])])
    assert "<script>" not in one
    assert "legend" not in one
    assert [item.text for item in parsed(two).iter("li")] == ["<b>", "c"]


finite = st.floats(min_value=-1e6, max_value=1e6)


@given(st.lists(st.none() | finite, min_size=1, max_size=60))
def test_everything_is_drawn_inside_the_picture(values):
    html = line_chart("x", range(1, len(values) + 1), [Series(name="x", values=values)])
    for dot in parsed(html).iter("circle"):
        assert 0 <= float(dot.attrib["cx"]) <= WIDTH
        assert 0 <= float(dot.attrib["cy"]) <= HEIGHT


@given(finite, st.floats(min_value=1e-6, max_value=1e6), st.booleans())
def test_ticks_enclose_the_range_evenly(low, span, whole):
    marks = ticks(low, low + span, whole=whole)
    step = marks[1] - marks[0]
    slack = 1e-6 * max(1.0, step)
    assert marks[0] <= low + slack
    assert marks[-1] >= low + span - slack
    assert 2 <= len(marks) <= 12
    assert all(math.isclose(b - a, step, rel_tol=1e-3) for a, b in itertools.pairwise(marks))


def test_small_stages_are_summed_into_other():
    rows = [{f"s{i}": float(10 - i) for i in range(9)}, {"s0": 1.0}]
    series = stacked(rows, most=4)
    assert [part.name for part in series] == ["s0", "s1", "s2", "other"]
    assert [part.values[0] for part in series] == [10.0, 9.0, 8.0, 7 + 6 + 5 + 4 + 3 + 2]
    assert [part.values[1] for part in series] == [1.0, 0.0, 0.0, 0.0]
