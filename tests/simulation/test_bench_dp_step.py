"""The dp-step bench: its names, and numbers that can be ratios."""

from __future__ import annotations

import math

import pytest

from client.clipping import ENGINES
from simulation import bench_dp_step
from simulation.bench_dp_step import Case


@pytest.mark.slow
def test_a_case_gives_every_ratio() -> None:
    case = Case(name="tiny", layers=1, hidden=24, tokens=8, windows=2)
    results = bench_dp_step._measure(case, repeats=1)
    for engine in ENGINES:
        assert 0.01 < results[f"tiny.{engine}.time_ratio"] < 1000
        assert 0.5 < results[f"tiny.{engine}.memory_ratio"] < 10
    assert all(math.isfinite(value) for value in results.values())


@pytest.mark.parametrize("cases", [bench_dp_step._quick_cases(), bench_dp_step._full_cases()])
def test_the_promised_names_are_measured_with_every_engine(cases: list[Case]) -> None:
    promised = {case.name: case for case in cases if case.engines == ENGINES}
    assert set(promised) == {"bert_base_64", "minilm_64"}
    assert [(promised[n].layers, promised[n].hidden, promised[n].tokens) for n in sorted(promised)] == [
        (12, 768, 64),
        (6, 384, 64),
    ]
    assert len({case.name for case in cases}) == len(cases)
