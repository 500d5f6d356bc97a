"""The sum is exact in every order, and a bad update does not enter it."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import RoundError
from common.records import ModelUpdate
from server.aggregation import GRID_BITS, RunningSum

floats = st.floats(min_value=-1000, max_value=1000, width=32)


def vector(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def summed(updates, order) -> RunningSum:
    total = RunningSum()
    for index in order:
        total.add({"delta": updates[index][0], "num_examples": vector(index + 1)}, updates[index][1])
    return total


def test_sum_is_the_same_to_the_bit_in_every_order():
    generator = np.random.default_rng(7)
    scales = 10.0 ** generator.integers(-9, 3, size=(5, 300))
    values = (generator.standard_normal((5, 300)) * scales).astype(np.float32)
    updates = [(values[i], float(generator.uniform(0.01, 1))) for i in range(5)]
    means = {summed(updates, order).mean().tobytes() for order in itertools.permutations(range(5))}
    assert len(means) == 1
    # The input is one that plain float64 addition does not survive, or the test would show nothing.
    naive = {
        sum(updates[i][0] * updates[i][1] for i in order).tobytes()
        for order in itertools.permutations(range(5))
    }
    assert len(naive) > 1


@given(
    st.lists(st.tuples(floats, st.floats(min_value=1e-3, max_value=1)), min_size=1, max_size=8), st.randoms()
)
def test_sum_is_within_one_grid_step_per_site_of_the_exact_sum(contributions, random):
    total, other = RunningSum(), RunningSum()
    for value, weight in contributions:
        total.add({"delta": vector(value)}, weight)
    size = sum(abs(value) * weight for value, weight in contributions)
    random.shuffle(contributions)
    for value, weight in contributions:
        other.add({"delta": vector(value)}, weight)
    exact = sum(Fraction(float(np.float32(value))) * Fraction(weight) for value, weight in contributions)
    got = float(total.total("delta")[0])
    slack = len(contributions) * Fraction(1, 2 ** (GRID_BITS + 1)) + Fraction(size) / 2**52
    assert abs(Fraction(got) - exact) <= slack
    assert other.total("delta").tobytes() == total.total("delta").tobytes()
    assert other.total_weight == total.total_weight


def test_weighted_mean_and_plain_counts():
    total = RunningSum()
    total.add({"delta": vector(1.0, -2.0), "num_examples": vector(10)}, 1.0)
    total.add_update(ModelUpdate(fields={"delta": vector(3.0, 2.0), "num_examples": vector(30)}, weight=0.5))
    np.testing.assert_array_equal(total.mean(), vector((1 + 1.5) / 1.5, (-2 + 1) / 1.5))
    assert total.mean().dtype == np.float32
    assert total.total("num_examples").tolist() == [40.0]
    assert (total.num_sites, total.total_weight) == (2, 1.5)
    assert total.fields == ("delta", "num_examples")


def test_fields_weighted_by_an_earlier_stage_are_not_weighted_again():
    total = RunningSum(weighted_fields=())
    total.add({"delta": vector(0.5)}, 0.5)
    total.add({"delta": vector(2.0)}, 1.0)
    assert total.mean().tolist() == [np.float32(2.5 / 1.5)]


def test_large_counts_are_exact():
    total = RunningSum()
    for _ in range(1000):
        total.add({"tokens": vector(2.0**24 - 1)}, 1.0)
    assert total.total("tokens")[0] == 1000 * (2**24 - 1)


def test_blocks_do_not_show():
    values = np.random.default_rng(1).standard_normal(200_001).astype(np.float32)
    total = RunningSum()
    total.add({"delta": values}, 1.0)
    np.testing.assert_array_equal(total.mean(), values)


@pytest.mark.parametrize(
    "bad",
    [
        {"delta": vector(float("nan"), 0)},
        {"delta": vector(0, float("inf"))},
        {"delta": vector(0, 1e30)},
        {"delta": vector(1, 2, 3)},
        {"other": vector(1, 2)},
        {},
        {"delta": np.zeros(2, dtype=np.float64)},
        {"delta": np.zeros((2, 1), dtype=np.float32)},
    ],
)
def test_a_bad_update_is_refused_and_leaves_the_sum_as_it_was(bad):
    total = RunningSum()
    total.add({"delta": vector(1, 2)}, 1.0)
    with pytest.raises(RoundError):
        total.add(bad, 1.0)
    assert total.mean().tolist() == [1.0, 2.0]
    assert total.num_sites == 1


def test_an_empty_sum_has_no_mean():
    with pytest.raises(RoundError, match="nothing to average"):
        RunningSum().mean()
