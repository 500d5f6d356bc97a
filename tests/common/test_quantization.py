"""Rounding into the ring: unbiased, bounded, exact for counts, and never wrapping."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ValidationError
from common.quantization import LARGEST_SUM, FieldSpec, RingLayout


def one_real(size, *, bound=1.0, bits=8, sites=100):
    return RingLayout(fields=(FieldSpec.real("x", size=size, bound=bound, bits=bits),), maximum_sites=sites)


def encode_x(layout, values, weight=1.0):
    return layout.encode({"x": np.asarray(values, np.float32)}, weight=weight).view(np.int32)


def test_rounding_is_unbiased_with_the_closed_form_variance():
    # floor(v + U) has mean v and variance f (1 - f); 5 standard errors of each estimate are allowed.
    layout, n = one_real(200_000), 200_000
    for value in (0.3, -0.3, 0.0001, 0.999):
        scaled = np.float32(value) * 127.0
        fraction = scaled - math.floor(scaled)
        variance = fraction * (1 - fraction)
        rounded = encode_x(layout, np.full(n, value))
        assert set(np.unique(rounded)) <= {math.floor(scaled), math.floor(scaled) + 1}
        assert abs(rounded.mean() - scaled) < 5 * math.sqrt(variance / n)
        assert abs(rounded.var() - variance) < 5 * math.sqrt(variance / n)


def test_biased_rounding_would_be_caught():
    nearest = np.rint(np.full(200_000, np.float32(0.3) * 127.0))
    assert abs(nearest.mean() - np.float32(0.3) * 127.0) > 0.05


@settings(deadline=None)
@given(st.floats(-4, 4, width=32), st.floats(0.01, 1), st.integers(2, 24))
def test_a_value_lands_on_a_neighbouring_level_of_its_clipped_weighted_self(value, weight, bits):
    layout = one_real(1, bits=bits)
    decoded = layout.decode(layout.encode({"x": np.array([value], np.float32)}, weight=weight))["x"][0]
    clipped = min(max(value * weight, -1.0), 1.0)
    assert abs(decoded - clipped) <= layout.fields[0].step * (1 + 1e-9)
    assert abs(decoded) <= 1.0


def test_weight_comes_before_the_clip():
    layout = one_real(1)
    assert encode_x(layout, [1.5], weight=0.5)[0] in (95, 96)
    assert encode_x(layout, [1.5], weight=1.0)[0] == 127


def test_all_sites_at_the_bound_do_not_wrap():
    sites = 16
    room = LARGEST_SUM // sites
    layout = RingLayout(fields=(FieldSpec(name="x", size=2, bound=3.0, levels=room),), maximum_sites=sites)
    extreme = layout.encode({"x": np.array([9.0, -9.0], np.float32)}, weight=1.0)
    total = np.zeros(2, np.uint32)
    for _ in range(sites):
        total += extreme
    assert layout.decode(total)["x"] == pytest.approx([3.0 * sites, -3.0 * sites])


@pytest.mark.parametrize(
    ("bits", "sites", "good"), [(28, 16, True), (28, 17, False), (32, 1, True), (32, 2, False)]
)
def test_a_layout_that_could_wrap_is_refused(bits, sites, good):
    if good:
        one_real(1, bits=bits, sites=sites)
    else:
        with pytest.raises(ValidationError, match="would not fit 32 bits"):
            one_real(1, bits=bits, sites=sites)


@settings(deadline=None)
@given(st.lists(st.integers(-(2**24), 2**24), min_size=1, max_size=20), st.floats(0.01, 1))
def test_counts_survive_exactly_whatever_the_weight(counts, weight):
    layout = RingLayout(fields=(FieldSpec.count("n", size=len(counts), bound=2**24),), maximum_sites=100)
    vector = layout.encode({"n": np.array(counts, np.float32)}, weight=weight)
    assert layout.decode(vector + vector)["n"].tolist() == [2 * count for count in counts]


@pytest.mark.parametrize("value", [0.5, 11.0, -11.0])
def test_counts_that_would_change_are_refused(value):
    layout = RingLayout(fields=(FieldSpec.count("n", bound=10),), maximum_sites=2)
    with pytest.raises(ValidationError, match="not a whole number from -10 to 10"):
        layout.encode({"n": np.array([value], np.float32)}, weight=1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(value):
    with pytest.raises(ValidationError, match="not a finite number"):
        encode_x(one_real(3), [0.0, value, 0.0])


def test_shape_names_and_weight_are_checked():
    layout = one_real(3)
    for fields, weight in (({"x": np.zeros(2)}, 1.0), ({"y": np.zeros(3)}, 1.0), ({"x": np.zeros(3)}, 1.01)):
        with pytest.raises(ValidationError):
            layout.encode(fields, weight=weight)
    with pytest.raises(ValidationError, match="name of its own"):
        RingLayout(fields=layout.fields * 2, maximum_sites=2)
    with pytest.raises(ValidationError, match=r"FieldSpec\.count"):
        FieldSpec(name="n", size=1, bound=2.0, levels=3, weighted=False, exact=True)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.05, 1), min_size=1, max_size=12))
def test_the_mean_is_within_its_stated_errors(weights):
    size, layout = 4000, one_real(4000, bits=6)
    values = np.linspace(-0.9, 0.9, size).astype(np.float32)
    total = np.zeros(size, np.uint32)
    for weight in weights:
        total += layout.encode({"x": values}, weight=weight)
    error = layout.decode(total)["x"] / math.fsum(weights) - values
    assert np.abs(error).max() <= layout.mean_largest_error("x", weights) + 1e-6
    # The root mean square over coordinates estimates the standard deviation; 1.1 covers its own error.
    assert math.sqrt((error**2).mean()) <= 1.1 * layout.mean_standard_deviation("x", weights)


def test_fields_lie_side_by_side_and_blocks_join():
    size = 3 * (1 << 15) + 7
    fields = (FieldSpec.count("n", size=2, bound=9), FieldSpec.real("x", size=size, bound=1.0, bits=20))
    layout = RingLayout(fields=fields, maximum_sites=4)
    values = np.linspace(-1, 1, size).astype(np.float32)
    vector = layout.encode({"x": values, "n": np.array([3, -4], np.float32)}, weight=1.0)
    decoded = layout.decode(vector)
    assert vector.shape == (layout.length,) == (size + 2,)
    assert decoded["n"].tolist() == [3.0, -4.0]
    assert np.abs(decoded["x"] - values).max() < fields[1].step


def test_rounding_does_not_follow_numpys_seed():
    layout, values = one_real(1000), np.full(1000, 0.3, np.float32)
    outcomes = []
    for _ in range(2):
        np.random.seed(7)
        outcomes.append(encode_x(layout, values))
    assert not np.array_equal(*outcomes)


def test_the_digest_covers_every_attribute():
    base = FieldSpec.real("x", size=4, bound=1.0, bits=8)
    others = [
        FieldSpec.real("y", size=4, bound=1.0, bits=8),
        FieldSpec.real("x", size=5, bound=1.0, bits=8),
        FieldSpec.real("x", size=4, bound=2.0, bits=8),
        FieldSpec.real("x", size=4, bound=1.0, bits=9),
        FieldSpec.real("x", size=4, bound=1.0, bits=8, weighted=False),
    ]
    layouts = [RingLayout(fields=(field,), maximum_sites=4) for field in (base, *others)]
    layouts.append(RingLayout(fields=(base,), maximum_sites=5))
    assert len({layout.digest() for layout in layouts}) == len(layouts)


def test_decode_checks_its_vector():
    with pytest.raises(ValidationError, match="3 uint32 values"):
        one_real(3).decode(np.zeros(4, np.uint32))


def test_a_million_values_are_rounded_quickly():
    layout = one_real(1_000_000, bits=20)
    values = np.zeros(1_000_000, np.float32)
    started = time.process_time()
    encode_x(layout, values)
    assert time.process_time() - started < 0.1
