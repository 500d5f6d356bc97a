"""Noise for one logical step, and secret randomness for dropout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from client.clipped_sum import ClippedSum
from common.errors import ValidationError
from common.secure_random import SecureGenerator
from common.validation import require_float


def noised_mean(
    clipped: ClippedSum,
    *,
    noise_multiplier: float,
    sensitivity: float,
    denominator: float,
    generator: SecureGenerator,
) -> dict[str, Tensor]:
    """Return the clipped sum plus Gaussian noise, divided by a public number: a gradient for any optimizer.

    Formal guarantees: With `sensitivity` the L2 sensitivity of the sum (`ClippingEngine.sensitivity`), the
    result is post-processing of a Gaussian mechanism of noise multiplier `noise_multiplier` under addition
    or removal of one unit. Noise is added once, to the sum over all physical batches, in float64 and rounded
    once to float32, whatever dtype the model computes in. An empty batch is noised like any other.

    Args:
        clipped: The sum over one logical batch.
        noise_multiplier: Standard deviation of the noise over the sensitivity, from 0 up.
        sensitivity: Above 0.
        denominator: The sampling rate times the declared public number of units, above 0; never the size
            of the batch, which is sensitive.
        generator: Secret randomness.

    Returns:
        Float32 gradients by parameter name, on the devices of the sum.

    Raises:
        ValidationError: A number is out of range, or the sum is not float32.
    """
    require_float("noise_multiplier", noise_multiplier, minimum=0.0, maximum=1e6)
    require_float("sensitivity", sensitivity, minimum=0.0, maximum=1e9, open_minimum=True)
    require_float("denominator", denominator, minimum=0.0, maximum=1e12, open_minimum=True)
    std = noise_multiplier * sensitivity
    return {
        name: _noised(name, gradient, std, generator).div_(denominator)
        for name, gradient in clipped.gradients.items()
    }


def _noised(name: str, gradient: Tensor, std: float, generator: SecureGenerator) -> Tensor:
    """Return a noised copy of one gradient."""
    if gradient.dtype != torch.float32:
        raise ValidationError(
            f"The clipped sum of {name} is {gradient.dtype}; noise is added to float32 only."
        )
    values = np.array(gradient.detach().cpu().numpy(), dtype=np.float32, copy=True, order="C").reshape(-1)
    generator.add_gaussian(values, std=std)
    return torch.from_numpy(values).view(gradient.shape).to(gradient.device)


@contextlib.contextmanager
def secret_dropout(generator: SecureGenerator) -> Iterator[None]:
    """Seed torch from secret randomness inside, and give its generators back their state afterwards.

    Dropout masks depend on a window's place in the batch. Under a secret seed they are independent of the
    records, so a unit's mask has the same distribution wherever it lies; under a known seed, another unit
    coming or going would change them. The CPU generator of torch keeps 32 bits of its seed: this hides
    masks from peers, it is not cryptographic, and no noise is drawn from it.

    Args:
        generator: Secret randomness.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(generator.integers(1, high=2**62)[0]))
        yield
