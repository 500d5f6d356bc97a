"""The noise of a step: its scale, its source, and the torch seed that it must not follow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from client.clipped_sum import ClippedSum
from client.noise import noised_mean, secret_dropout
from common.errors import ValidationError
from common.secure_random import SecureGenerator

KEY = bytes(range(32))


def clipped(value: float = 0.0, dtype: torch.dtype = torch.float32) -> ClippedSum:
    gradients = {"weight": torch.full((300, 200), value, dtype=dtype), "bias": torch.full((5,), value)}
    return ClippedSum(gradients=gradients, num_units=0, num_nonfinite=0, norms=torch.zeros(0))


def released(generator: SecureGenerator, value: float = 0.0, **changes: float) -> dict[str, torch.Tensor]:
    numbers = {"noise_multiplier": 1.5, "sensitivity": 0.2, "denominator": 30.0} | changes
    return noised_mean(clipped(value), generator=generator, **numbers)


def test_noise_has_the_stated_scale_and_an_empty_batch_has_it_too() -> None:
    noised = released(SecureGenerator.for_tests(KEY))
    assert noised["weight"].shape == (300, 200)
    assert noised["weight"].dtype == torch.float32
    values = noised["weight"].flatten().numpy()
    assert stats.kstest(values, "norm", args=(0.0, 1.5 * 0.2 / 30)).pvalue > 1e-3
    assert stats.kstest(values, "norm", args=(0.0, 1.06 * 1.5 * 0.2 / 30)).pvalue < 1e-3


def test_the_sum_is_divided_by_the_public_number() -> None:
    exact = released(SecureGenerator(), value=6.0, noise_multiplier=0.0)
    assert torch.equal(exact["bias"], torch.full((5,), 0.2))


def test_the_sum_itself_is_not_changed() -> None:
    total = clipped(1.0)
    noised_mean(total, noise_multiplier=1, sensitivity=1, denominator=1, generator=SecureGenerator())
    assert torch.equal(total.gradients["bias"], torch.ones(5))


def test_noise_does_not_follow_any_seed() -> None:
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        draws.append(released(SecureGenerator())["weight"])
    assert not torch.isclose(draws[0], draws[1], rtol=1e-6, atol=0.0).float().mean() > 0.01


def test_parameters_and_steps_have_noise_of_their_own() -> None:
    generator = SecureGenerator.for_tests(KEY)
    first, second = released(generator), released(generator)
    assert not torch.equal(first["weight"], second["weight"])
    assert not torch.equal(first["weight"].flatten()[:5], first["bias"])


def test_noise_leaves_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    released(SecureGenerator())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise_multiplier", -1.0),
        ("noise_multiplier", float("nan")),
        ("sensitivity", 0.0),
        ("denominator", 0.0),
        ("denominator", float("inf")),
    ],
)
def test_bad_numbers_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValidationError, match=name):
        released(SecureGenerator(), **{name: value})


def test_noise_is_never_added_in_bfloat16() -> None:
    with pytest.raises(ValidationError, match="float32 only"):
        noised_mean(
            clipped(dtype=torch.bfloat16),
            noise_multiplier=1.0,
            sensitivity=1.0,
            denominator=1.0,
            generator=SecureGenerator(),
        )


def test_dropout_is_secret_inside_and_reproducible_outside() -> None:
    masks = []
    for _ in range(2):
        torch.manual_seed(0)
        with secret_dropout(SecureGenerator()):
            masks.append(torch.nn.functional.dropout(torch.ones(200), 0.5))
        masks.append(torch.rand(3))
    assert not torch.equal(masks[0], masks[2])
    assert torch.equal(masks[1], masks[3])
