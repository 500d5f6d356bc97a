"""result.json says what DESIGN promises, and claims privacy only where every site has it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from common.accounting import Epsilon
from common.errors import ValidationError
from server.reporting import RunReport, installed_versions, result_of


def report(**changes: Any) -> RunReport:
    scores = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 10}
    values: dict[str, Any] = {
        "name": "demo",
        "run_id": "r1",
        "evaluation": {"micro": scores, "macro": {**scores, "f1": 0.25}, "per_entity": {"Disease": scores}},
        "history": [{"round": 1}, {"round": 2}],
        "planned_rounds": 2,
        "sites": ["a", "b"],
        "plan_text": "seed = 7\n",
        "plan_hash": "ab" * 32,
        "seed": 7,
        "seconds": 12.5,
        "finished_at": "2026-01-01T00:00:00+00:00",
    }
    return RunReport(**{**values, **changes})


def claim(epsilon: float) -> Epsilon:
    return Epsilon(epsilon=epsilon, delta=1e-5, unit="patient", method="prv")


def test_result_has_the_promised_keys():
    result = json.loads(json.dumps(result_of(report()), allow_nan=False))
    assert result["micro_f1"] == 0.5
    assert result["macro_f1"] == 0.25
    assert result["per_entity"]["Disease"]["support"] == 10
    assert (result["rounds"], result["sites"], result["seconds"]) == (2, 2, 12.5)
    assert (result["secure_aggregation"], result["epsilon"]) == (False, None)


def test_epsilon_is_that_of_the_weakest_site():
    private = report(privacy={"a": claim(2.0), "b": claim(3.5)})
    assert private.epsilon == 3.5
    entry = result_of(private)["privacy"]["b"]
    assert entry["epsilon"] == 3.5
    assert (entry["delta"], entry["unit"], entry["neighbouring"]) == (
        1e-5,
        "patient",
        "add-or-remove-one patient",
    )


@pytest.mark.parametrize("privacy", [{}, {"a": claim(2.0)}, {"a": claim(2.0), "b": claim(math.inf)}])
def test_no_epsilon_is_claimed_unless_every_site_has_a_finite_one(privacy):
    assert result_of(report(privacy=privacy))["epsilon"] is None


def test_a_run_without_a_test_set_has_no_f1():
    result = result_of(report(evaluation={}))
    assert result["micro_f1"] is None
    assert result["per_entity"] == {}


def test_a_report_needs_its_plan_hash():
    with pytest.raises(ValidationError, match="plan_hash"):
        report(plan_hash="")


def test_versions_name_what_a_result_depends_on():
    versions = installed_versions()
    assert versions["torch"].startswith("2.")
    assert {"python", "fedward", "flwr", "opacus"} <= versions.keys()
