"""The secure generator: distribution, independence of every seed, and a state that cannot leave."""

from __future__ import annotations

import copy
import os
import pickle
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from common.errors import ValidationError
from common.secure_random import SecureGenerator

KEY = bytes(range(32))


def fixed() -> SecureGenerator:
    return SecureGenerator.for_tests(KEY)


def test_stream_is_aes_256_ctr() -> None:
    # AES-256 of the zero block under the zero key, FIPS-197 style known answer.
    words = SecureGenerator.for_tests(bytes(32)).words(2)
    assert words.tobytes().hex() == "dc95c078a2408989ad48a21492842087"


@pytest.mark.parametrize("std", [0.25, 1.0, 40.0])
def test_gaussian_passes_kolmogorov_smirnov_at_the_stated_scale(std: float) -> None:
    values = fixed().gaussian(200_000, std=std)
    assert values.dtype == np.float32
    assert stats.kstest(values, "norm", args=(0.0, std)).pvalue > 1e-3
    assert stats.kstest(values, "norm", args=(0.0, std * 1.02)).pvalue < 1e-3


def test_gaussian_pairs_and_lags_are_uncorrelated() -> None:
    values = fixed().gaussian(1 << 18, std=1.0).astype(np.float64)
    for lag in (1, 2, 4096, 8192, 16384):
        assert abs(np.mean(values[:-lag] * values[lag:])) < 5 / np.sqrt(values.size)
    assert abs(stats.kurtosis(values)) < 0.06


def test_gaussian_is_a_sum_of_four_box_muller_gaussians() -> None:
    generator, block = fixed(), 1 << 14
    total = np.zeros(block)
    for _ in range(4):
        signed = generator.words(block).view(np.int64) * 2.0**-63
        radius, angle = np.sqrt(-2 * np.log(np.abs(signed[: block // 2]))), np.pi * signed[block // 2 :]
        total += np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    np.testing.assert_allclose(fixed().gaussian(block, std=1.0), total / 2, rtol=1e-6)


def test_value_and_noise_are_added_in_float64_and_rounded_once() -> None:
    noise = fixed().gaussian(1000, std=1.0)
    values = np.full(1000, 3.0, dtype=np.float32)
    fixed().add_gaussian(values, std=1.0)
    single = np.float32(3.0) + noise
    assert np.abs(values - single).max() < 1e-6
    assert (values != single).any()


def test_noise_does_not_depend_on_how_often_it_is_asked_for_or_on_any_seed() -> None:
    draws = []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)
        generator = SecureGenerator()
        draws.append(np.concatenate([generator.gaussian(100, std=1.0), generator.gaussian(100, std=1.0)]))
    assert not np.isin(draws[0], draws[1]).any()
    assert np.unique(draws[0]).size == 200


def test_drawing_leaves_the_seeded_generators_alone() -> None:
    np.random.seed(7)
    random.seed(7)
    fixed().gaussian(100, std=1.0)
    after = np.random.random(), random.random()
    np.random.seed(7)
    random.seed(7)
    assert after == (np.random.random(), random.random())


def test_bernoulli_counts_pass_chi_square() -> None:
    generator = SecureGenerator.for_tests(bytes(range(1, 33)))
    draws = np.stack([generator.bernoulli(500, probability=0.2) for _ in range(400)])
    counts = draws.sum(axis=0)
    statistic = float(((counts - 80.0) ** 2 / (400 * 0.2 * 0.8)).sum())
    assert 1e-3 < stats.chi2.sf(statistic, df=500) < 1 - 1e-3
    sizes = draws.sum(axis=1)
    assert stats.kstest((sizes - 100) / np.sqrt(80), "norm").pvalue > 1e-4


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (1.0, 1000), (5e-324, 0)])
def test_bernoulli_edges(probability: float, expected: int) -> None:
    assert fixed().bernoulli(1000, probability=probability).sum() == expected


@settings(max_examples=25, deadline=None)
@given(high=st.integers(min_value=1, max_value=2**62), size=st.integers(min_value=0, max_value=50))
def test_integers_stay_in_range(high: int, size: int) -> None:
    values = fixed().integers(size, high=high)
    assert values.shape == (size,)
    assert ((values >= 0) & (values < high)).all()


def test_integers_are_uniform_where_a_plain_modulo_is_not() -> None:
    high = 3 * 2**60
    below = (fixed().integers(20_000, high=high) < 2**60).mean()
    assert abs(below - 1 / 3) < 0.02
    assert abs((fixed().words(20_000) % np.uint64(high) < 2**60).mean() - 3 / 8) < 0.02


def test_uniform_is_a_multiple_of_two_to_the_minus_53() -> None:
    values = fixed().uniform(10_000)
    assert ((values >= 0) & (values < 1)).all()
    assert (values * 2.0**53 == np.floor(values * 2.0**53)).all()
    assert stats.kstest(values, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("send", [pickle.dumps, copy.copy, copy.deepcopy])
def test_state_is_never_saved_or_copied(send: object) -> None:
    with pytest.raises(TypeError, match="cannot be saved or copied"):
        send(SecureGenerator())  # type: ignore[operator]


def test_repr_shows_no_state() -> None:
    assert repr(SecureGenerator()) == "SecureGenerator()"
    assert repr(fixed()) == "SecureGenerator(for tests)"


def test_a_forked_process_does_not_repeat_the_parents_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = SecureGenerator()
    before = generator._stream
    monkeypatch.setattr(os, "getpid", lambda: -1)
    generator.words(1)
    assert generator._stream is not before


@pytest.mark.parametrize(
    ("values", "std"),
    [
        (np.zeros(4), 1.0),
        (np.zeros((2, 2), np.float32), 1.0),
        (np.zeros(8, np.float32)[::2], 1.0),
        (np.zeros(4, np.float32), -1.0),
        (np.zeros(4, np.float32), float("nan")),
    ],
)
def test_bad_noise_requests_are_refused(values: np.ndarray, std: float) -> None:
    with pytest.raises(ValidationError, match=r"values|std"):
        fixed().add_gaussian(values, std=std)


def test_a_short_test_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="32"):
        SecureGenerator.for_tests(b"short")
