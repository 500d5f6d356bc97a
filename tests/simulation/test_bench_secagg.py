"""The bench's names and checks, on sizes that take no time."""

import warnings

import numpy as np
import pytest

from common.errors import FedwardError

with warnings.catch_warnings():
    # flwr imports typer, which imports a name that click has deprecated; nothing of ours can change that.
    warnings.simplefilter("ignore", DeprecationWarning)
    from simulation import bench_secagg


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bench_secagg, "_MODEL_VALUES", 40_000)
    monkeypatch.setattr(bench_secagg, "_COHORT_VALUES", 50)
    monkeypatch.setattr(bench_secagg, "_QUICK_COHORTS", [(10, 0.2)])
    # The child process would measure its imports at this size; its function is tested by itself below.
    monkeypatch.setattr(bench_secagg, "in_child", lambda measure, values: 2.0)
    # A whole round on the embedded encoder is no test's business.
    monkeypatch.setattr(bench_secagg, "measure_round", lambda **sizes: {"round.time_ratio": 1.0})


def test_the_quick_run_gives_the_documented_names(small):
    numbers = bench_secagg.run(quick=True)
    assert {
        "mask.aes_fraction",
        "mask.vs_flower",
        "quantize.vs_flower",
        "wire.vs_flower",
        "mask.peak_memory_ratio",
        "round.time_ratio",
        "cohort.10.0.2.site_ms",
    } <= set(numbers)
    assert all(isinstance(value, float) and value >= 0 for value in numbers.values())


def test_half_the_bytes_go_on_the_wire():
    assert bench_secagg._measure_wire(100_000)["wire.vs_flower"] == pytest.approx(2.0, abs=0.001)


def test_the_peak_is_measured_in_a_process_of_its_own():
    ratio = bench_secagg.in_child(bench_secagg._measure_memory, 4_000_000)
    assert 1.9 < ratio < 2.5


def test_a_sum_that_is_not_exact_is_an_error(monkeypatch):
    federation = bench_secagg._Federation(3, 10)
    federation.values = federation.values + np.int32(1)
    with pytest.raises(FedwardError, match="not exact"):
        federation.run(0)


def test_lost_sites_are_survived():
    assert bench_secagg._Federation(10, 10).run(2)["finish"] >= 0
