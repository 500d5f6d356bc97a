"""Thresholds, and the hashes that bind an attempt."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ValidationError
from common.quantization import FieldSpec, RingLayout
from common.secagg_parameters import AttemptContext, SecureAggregationParameters, parameters_hash

LAYOUT = RingLayout(fields=(FieldSpec.count("n", bound=5),), maximum_sites=8)


@settings(deadline=None)
@given(st.integers(1, 2000), st.integers(0, 100))
def test_two_survivor_sets_cannot_both_find_a_threshold_of_signers(sites, colluding):
    t = SecureAggregationParameters(collusion_tolerance=colluding).cohort_threshold(sites)
    # Honest sites sign once, colluding ones twice: 2 t signatures need more than n + c signers.
    assert 2 * t > sites + colluding
    assert 2 * (t - 1) <= sites + colluding


def test_the_worked_cases_of_the_design():
    parameters = SecureAggregationParameters(collusion_tolerance=1, minimum_cohort=2)
    assert parameters.cohort_threshold(8) == 5
    # Three sites with one colluding tolerate no dropout.
    assert parameters.needed_survivors(3) == 3
    with pytest.raises(ValidationError, match="cohort of 2 sites is too small"):
        parameters.check_cohort(2)


def test_a_plan_can_only_raise_the_threshold():
    assert SecureAggregationParameters(threshold=3).cohort_threshold(8) == 5
    assert SecureAggregationParameters(threshold=7).cohort_threshold(8) == 7
    assert SecureAggregationParameters(minimum_cohort=6).needed_survivors(8) == 6
    assert SecureAggregationParameters(collusion_tolerance=6, minimum_cohort=2).needed_survivors(8) == 8


@pytest.mark.parametrize(
    "change",
    [
        {"collusion_tolerance": -1},
        {"minimum_cohort": 1},
        {"bits": 1},
        {"dropout_tolerance": 1.0},
        {"rounds": 0},
        {"attempts": True},
        {"failure_bits": 10},
    ],
)
def test_parameters_outside_their_range_are_refused(change):
    with pytest.raises(ValidationError, match=next(iter(change))):
        SecureAggregationParameters(**change)


def test_every_parameter_and_the_layout_change_the_hash():
    base = SecureAggregationParameters()
    changed = {
        "collusion_tolerance": 2,
        "threshold": 4,
        "minimum_cohort": 4,
        "bits": 21,
        "dropout_tolerance": 0.25,
        "rounds": 101,
        "attempts": 4,
        "failure_bits": 41,
        "full_graph_limit": 65,
    }
    assert set(changed) == {field.name for field in dataclasses.fields(base)}
    variants = [dataclasses.replace(base, **{name: value}) for name, value in changed.items()]
    hashes = {parameters_hash(parameters, LAYOUT) for parameters in (base, *variants)}
    hashes.add(parameters_hash(base, dataclasses.replace(LAYOUT, maximum_sites=9)))
    assert len(hashes) == len(changed) + 2


def test_every_part_of_a_context_changes_its_digest():
    parts = {
        "plan_hash": b"p" * 32,
        "model_hash": b"m" * 32,
        "parameters_hash": b"q" * 32,
        "round": 3,
        "attempt": 2,
        "nonce": b"n" * 32,
    }
    base = AttemptContext(**parts)
    digests = {base.digest()}
    for name, value in parts.items():
        other = value + 1 if isinstance(value, int) else b"x" * 32
        digests.add(dataclasses.replace(base, **{name: other}).digest())
    digests.add(AttemptContext(**{**parts, "round": 2, "attempt": 3}).digest())
    assert len(digests) == len(parts) + 2


@pytest.mark.parametrize(
    "change", [{"nonce": b"n" * 31}, {"plan_hash": "p" * 32}, {"round": 0}, {"attempt": 0}]
)
def test_a_context_with_a_wrong_part_is_refused(change):
    parts = dict.fromkeys(("plan_hash", "model_hash", "parameters_hash", "nonce"), b"h" * 32)
    with pytest.raises(ValidationError, match=next(iter(change))):
        AttemptContext(**{**parts, "round": 1, "attempt": 1, **change})
