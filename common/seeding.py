"""Deterministic randomness for the model, derived from the plan's seed by name.

This is the model's half alone: initial weights, shuffling, dropout without privacy. Noise, sampling,
rounding and masks never come from here; see `common.secure_random`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, *names: object) -> int:
    """Return a 63-bit seed that depends on the plan's seed and on every name, in order."""
    text = "\x1f".join(["fedward-seed-v1", str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(seed: int, *names: object) -> np.random.Generator:
    """Return a numpy generator for one named purpose."""
    return np.random.default_rng(derive_seed(seed, *names))


@contextmanager
def torch_seed(seed: int, *names: object) -> Iterator[None]:
    """Run a block with torch's global generators seeded for one purpose, and restore them after it."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(seed, *names))
        yield
