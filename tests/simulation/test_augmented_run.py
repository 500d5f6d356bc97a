"""The main job takes augmentation, adversarial training and features from the plan, with privacy and without."""

from __future__ import annotations

import pytest

from server.evaluation import evaluate_folder
from simulation.engine import simulate

EVERYTHING = {
    "augmentation__views": 2,
    "augmentation__typo": 0.3,
    "augmentation__mention": 0.5,
    "augmentation__swap": 0.2,
    "adversarial__method": "pgd",
    "adversarial__ascent_steps": 2,
    "features__tagger": "blank:en",
    "federation__rounds": 1,
    "simulation__sites": 2,
}
PRIVATE = {
    "privacy__q": 0.5,
    "privacy__steps": 2,
    "privacy__noise_multiplier": 1.0,
    "privacy__delta": 1e-3,
}


@pytest.mark.slow
@pytest.mark.parametrize("privacy", [{}, PRIVATE], ids=["plain", "private"])
def test_a_run_uses_every_section(make_plan, make_data, data_folder, tmp_path, privacy):
    plan = make_plan(**EVERYTHING, **privacy)
    result = simulate(plan, make_data(16), tmp_path / "run", device="cpu")
    assert (result["epsilon"] is not None) is bool(privacy)
    assert result["rounds"] == 1
    scores = evaluate_folder(tmp_path / "run" / "model", data_folder, split="test")
    assert scores["micro"]["f1"] == pytest.approx(result["micro_f1"])
