"""Time of one adversarial gradient step, as a ratio to the plain step, without and with privacy.

A step is what `simulation.bench_dp_step` takes for one: forward and backward of one physical batch up to the
gradient. The private ratio is to the book-keeping step without adversarial training. Seconds are those of the
processor, over all threads, which other programs on the machine do not stretch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from client.adversarial import PlainAdversary, UnitAdversary
from client.clip_rule import ClipRule
from client.clipped_sum import token_loss
from client.clipping import make_engine
from client.heap import keep_freed_memory
from client.sampling import PhysicalBatch
from common.plan_augmentation import METHODS, Adversarial
from simulation.bench_child import in_child
from simulation.bench_dp_step import Case, model_of, windows_of

_STEPS = 3
PLAIN = "plain"
PRIVATE = "private"


def run(quick: bool) -> dict[str, float]:
    """Measure and return ratios by name.

    Args:
        quick: A small batch and 3 repeats; otherwise 16 windows of 64 tokens and 10 repeats, with BERT-base's
            shape beside MiniLM's.

    Returns:
        `{method}.time_ratio` and `{method}.private_time_ratio` for the embedded MiniLM's shape (medians over
        interleaved repeats; 3 ascent steps for `pgd` and `freelb`), `plain.seconds`, and the same under
        `bert_base_64.` in the full measurement.
    """
    windows, repeats = (8, 3) if quick else (16, 10)
    results = _measure(Case(name="minilm_64", layers=6, hidden=384, tokens=64, windows=windows), repeats)
    if not quick:
        case = Case(name="bert_base_64", layers=12, hidden=768, tokens=64, windows=windows)
        results |= {f"{case.name}.{name}": value for name, value in _measure(case, repeats).items()}
    return results


def _measure(case: Case, repeats: int) -> dict[str, float]:
    """Return the ratios of one shape, measured in a process of its own."""
    seconds: dict[str, float] = in_child(
        _time_steps, case, torch.get_num_threads(), repeats, preload=__name__
    )
    results = {"plain.seconds": seconds[PLAIN]}
    for method in METHODS:
        results[f"{method}.time_ratio"] = seconds[method] / seconds[PLAIN]
        results[f"{method}.private_time_ratio"] = seconds[f"{PRIVATE}.{method}"] / seconds[PRIVATE]
    return results


def _time_steps(case: Case, threads: int, repeats: int) -> dict[str, float]:
    """Return the median seconds of each step; the steps take turns, so that a slow moment hits all."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, batch = model_of(case), windows_of(case)
    actions = {PLAIN: _plain(model, batch, None), PRIVATE: _private(model, batch, None)}
    for method in METHODS:
        section = Adversarial(method=method, ascent_steps=_STEPS)
        actions[method] = _plain(model, batch, section)
        actions[f"{PRIVATE}.{method}"] = _private(model, batch, section)
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        action()
    for _ in range(repeats):
        for name, action in actions.items():
            start = time.process_time()
            action()
            taken[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def _plain(model: nn.Module, batch: PhysicalBatch, section: Adversarial | None) -> Callable[[], None]:
    """Return a step without privacy."""

    def loss() -> torch.Tensor:
        """Run the model once."""
        return (token_loss(model, batch) * batch.weights).sum()

    def step() -> None:
        """Leave the gradient in `.grad`, then let it go."""
        if section is None:
            loss().backward()  # type: ignore[no-untyped-call]
        else:
            PlainAdversary(section=section).backward(model, batch.attention_mask, loss)
        model.zero_grad(set_to_none=True)

    return step


def _private(model: nn.Module, batch: PhysicalBatch, section: Adversarial | None) -> Callable[[], None]:
    """Return a step up to the clipped sum."""
    engine = make_engine("bookkeeping", ClipRule(mode="flat", max_grad_norm=0.1))

    def step() -> None:
        """Form the clipped sum, then let it go."""
        batches = [batch]
        if section is None:
            engine.clipped_sum(model, batches)
        else:
            engine.clipped_sum(model, UnitAdversary(section=section).batches(model, batches))

    return step
