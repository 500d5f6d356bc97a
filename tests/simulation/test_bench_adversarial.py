"""The adversarial bench: its names, and ratios that can be ratios."""

from __future__ import annotations

import pytest

from common.plan_augmentation import METHODS
from simulation import bench_adversarial
from simulation.bench_dp_step import Case
from simulation.cli import BENCHES


@pytest.mark.slow
def test_a_case_gives_every_ratio() -> None:
    results = bench_adversarial._measure(Case(name="tiny", layers=1, hidden=24, tokens=8, windows=2), 1)
    for method in METHODS:
        assert 0.1 < results[f"{method}.time_ratio"] < 1000
        assert 0.1 < results[f"{method}.private_time_ratio"] < 1000


@pytest.mark.parametrize("quick", [True, False])
def test_the_promised_names_are_measured(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Case] = []

    def measure(case: Case, repeats: int) -> dict[str, float]:
        seen.append(case)
        return {f"{method}.time_ratio": float(repeats) for method in METHODS}

    monkeypatch.setattr(bench_adversarial, "_measure", measure)
    results = bench_adversarial.run(quick=quick)
    assert {"fgm.time_ratio", "pgd.time_ratio", "freelb.time_ratio"} <= set(results)
    assert (seen[0].layers, seen[0].hidden, seen[0].tokens) == (6, 384, 64)
    assert BENCHES["adversarial"] == "bench_adversarial"
