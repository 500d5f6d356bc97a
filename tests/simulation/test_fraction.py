"""A fraction of the training notes: by seed, nested, and apart from what was kept of another fraction."""

from __future__ import annotations

import json
import math

import pytest

from common.errors import ValidationError
from simulation import baselines
from simulation.baselines import compare
from simulation.fraction import take_fraction


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.99])
def test_the_size_is_rounded_up_and_the_test_set_stays(make_data, fraction):
    data = make_data(36)
    part = take_fraction(data, fraction, seed=1)
    assert len(part.train) == math.ceil(36 * fraction)
    assert (part.devel, part.test) == (data.devel, data.test)
    assert take_fraction(data, fraction, seed=1) == part


def test_fractions_are_nested_and_differ_by_seed(make_data):
    data = make_data(36)
    small, large = ({n.note_id for n in take_fraction(data, f, seed=4).train} for f in (0.2, 0.6))
    assert small < large
    assert small != {n.note_id for n in take_fraction(data, 0.2, seed=5).train}
    assert take_fraction(data, 1.0, seed=4) is data


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1])
def test_other_fractions_are_refused(make_data, fraction):
    with pytest.raises(ValidationError, match="--fraction"):
        take_fraction(make_data(4), fraction, seed=1)


def test_a_comparison_uses_each_seeds_own_part(make_plan, make_data, tmp_path, monkeypatch):
    seen = []

    def jobs(arm, plan, data, out, report):
        return [(arm, lambda: seen.append(len(data.train)) or {"micro_f1": 0.5, "seconds": 0.0})]

    monkeypatch.setattr(baselines, "_jobs", jobs)
    for fraction in (0.5, 0.5, 0.25):
        compare(make_plan(), make_data(36), tmp_path, seeds=[1, 2], arms=["central"], fraction=fraction)
    assert seen == [18, 18, 9, 9]
    assert json.loads((tmp_path / "central-seed1.json").read_text())["fraction"] == 0.25
