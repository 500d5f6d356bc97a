"""Clip rules: the bound holds for every norm, in every mode."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.clip_rule import CLIP_MODES, ClipRule
from common.errors import ValidationError

LAYERS = ("a", "b", "c")


@pytest.mark.parametrize("mode", CLIP_MODES)
@settings(deadline=None, max_examples=50)
@given(squares=st.lists(st.floats(0, 2.0**100, width=32), min_size=3, max_size=3), bound=st.floats(1e-3, 1e3))
def test_a_scaled_gradient_never_exceeds_the_bound(mode: str, squares: list[float], bound: float) -> None:
    rule = ClipRule(mode=mode, max_grad_norm=bound)
    groups = rule.groups(LAYERS)
    given_squares = torch.tensor(squares if len(groups) == 3 else [sum(squares)]).unsqueeze(1)
    factors = rule.factors(given_squares, groups)
    scaled = math.sqrt(float((factors.double().square() * given_squares.double()).sum()))
    assert scaled <= bound * (1 + 1e-6)


def test_per_layer_bounds_have_the_total_as_root_of_their_squares() -> None:
    rule = ClipRule(mode="per_layer", max_grad_norm=0.7, layer_weights={"a": 4.0})
    bounds = rule.bounds(LAYERS)
    assert float(bounds.square().sum().sqrt()) == pytest.approx(0.7)
    assert float(bounds[0] / bounds[1]) == pytest.approx(4.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_unit_that_is_not_finite_in_one_layer_is_dropped_from_all(bad: float) -> None:
    rule = ClipRule(mode="per_layer")
    factors = rule.factors(torch.tensor([[1.0, bad], [1.0, 1.0], [4.0, 4.0]]), LAYERS)
    assert (factors[:, 1] == 0).all()
    assert (factors[:, 0] > 0).all()


def test_small_gradients_are_left_alone_by_flat_and_raised_by_auto() -> None:
    small = torch.tensor([[1e-4]])
    assert float(ClipRule(mode="flat").factors(small, ("",))) == 1.0
    assert float(ClipRule(mode="auto", gamma=0.01).factors(small, ("",))) == pytest.approx(1 / 0.02)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mode": "flatt"}, "Did you mean 'flat'"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"gamma": -1.0}, "gamma"),
        ({"layer_weights": {"a": 1.0}}, "only per_layer"),
        ({"mode": "per_layer", "layer_weights": {"a": 0.0}}, r"layer_weights\.a"),
    ],
)
def test_bad_rules_are_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        ClipRule(**changes)  # type: ignore[arg-type]


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(ValidationError, match="unknown key 'd'"):
        ClipRule(mode="per_layer", layer_weights={"d": 1.0}).groups(LAYERS)
