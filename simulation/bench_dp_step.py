"""Time and memory of one private gradient step, as ratios to the same step without privacy.

A step here is the forward and backward pass of one physical batch up to the gradient that an optimizer would
take: for the private engines the clipped sum, for the plain step `.grad`. Noise and the optimizer's update
come once for each logical batch, cost the same for every engine, and are left out on both sides; the
seconds that noise takes are reported on their own.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from transformers import BertConfig, BertForTokenClassification

from client.clip_rule import ClipRule
from client.clipped_sum import token_loss
from client.clipping import ENGINES, make_engine
from client.heap import keep_freed_memory
from client.sampling import PhysicalBatch
from common.secure_random import SecureGenerator
from simulation.bench_child import in_child

T = TypeVar("T")

PLAIN = "plain"
OURS = ("bookkeeping",)
_NOISE_VALUES = 22_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One shape to measure.

    Attributes:
        name: What the results are listed under.
        layers: Encoder layers.
        hidden: Width; the feed-forward layers are four times as wide.
        tokens: Tokens of each window; each window is a unit.
        windows: Windows in the physical batch.
        engines: Which clipping engines to measure.
    """

    name: str
    layers: int
    hidden: int
    tokens: int
    windows: int
    engines: tuple[str, ...] = ENGINES


def run(quick: bool) -> dict[str, float]:
    """Measure and return ratios by name.

    Args:
        quick: Small batches and 3 repeats, in about a minute on 2 cores; otherwise 10 repeats of batches of
            16 windows, and more lengths for book-keeping alone.

    Returns:
        `{case}.{engine}.time_ratio` (median over interleaved repeats), `{case}.{engine}.memory_ratio` (peak
        resident memory of a child process), the same above the memory of the imports alone, the plain step's
        `{case}.plain.seconds` and `.mebibytes`, and `noise.seconds_22m` for 22 million values.
    """
    results: dict[str, float] = {}
    for case in _quick_cases() if quick else _full_cases():
        results |= _measure(case, repeats=3 if quick else 10)
    return results | {"noise.seconds_22m": _noise_seconds(_NOISE_VALUES // 11 if quick else _NOISE_VALUES)}


def _quick_cases() -> list[Case]:
    """Return small batches of the two shapes."""
    return [
        _bert(tokens=64, windows=4, name="bert_base_64", engines=ENGINES),
        _minilm(tokens=64, windows=8, name="minilm_64", engines=ENGINES),
    ]


def _full_cases() -> list[Case]:
    """Return the two shapes at full batch, then other batch sizes and lengths."""
    return [
        _bert(tokens=64, windows=16, name="bert_base_64", engines=ENGINES),
        _minilm(tokens=64, windows=16, name="minilm_64", engines=ENGINES),
        _bert(tokens=128, windows=8),
        _minilm(tokens=64, windows=64),
        _minilm(tokens=128, windows=16),
        _minilm(tokens=256, windows=8),
    ]


def _bert(*, tokens: int, windows: int, name: str | None = None, engines: tuple[str, ...] = OURS) -> Case:
    """Return a case of the shape of BERT-base."""
    name = name or f"bert_base_{tokens}_windows_{windows}"
    return Case(name=name, layers=12, hidden=768, tokens=tokens, windows=windows, engines=engines)


def _minilm(*, tokens: int, windows: int, name: str | None = None, engines: tuple[str, ...] = OURS) -> Case:
    """Return a case of the shape of the embedded MiniLM."""
    name = name or f"minilm_{tokens}_windows_{windows}"
    return Case(name=name, layers=6, hidden=384, tokens=tokens, windows=windows, engines=engines)


def _measure(case: Case, *, repeats: int) -> dict[str, float]:
    """Return the results of one case, each engine beside the plain step in a process of its own.

    All engines in one process would share a heap that the largest of them stretched.
    """
    imports = _in_child(_peak_mebibytes)
    seconds, peak = _in_child(_time_steps, case, (PLAIN,), repeats)
    results = {f"{case.name}.plain.seconds": seconds[PLAIN], f"{case.name}.plain.mebibytes": peak}
    for engine in case.engines:
        # The peak is that of the larger of the two, so a ratio below 1 shows as 1.
        seconds, both = _in_child(_time_steps, case, (PLAIN, engine), repeats)
        prefix = f"{case.name}.{engine}"
        results[f"{prefix}.time_ratio"] = seconds[engine] / seconds[PLAIN]
        results[f"{prefix}.memory_ratio"] = both / peak
        results[f"{prefix}.memory_ratio_above_imports"] = (both - imports) / (peak - imports)
    return results


def _time_steps(case: Case, steps: tuple[str, ...], repeats: int) -> tuple[dict[str, float], float]:
    """Return the median seconds of each step, and the peak memory of this process in mebibytes.

    The steps take turns, so that a slow moment hits all.
    """
    model, batch = model_of(case), windows_of(case)
    actions = {step: _step(step, model, batch) for step in steps}
    for action in actions.values():
        action()
    taken: dict[str, list[float]] = {step: [] for step in steps}
    for _ in range(repeats):
        for step, action in actions.items():
            start = time.perf_counter()
            action()
            taken[step].append(time.perf_counter() - start)
    return {step: statistics.median(values) for step, values in taken.items()}, _peak_mebibytes()


def _peak_mebibytes() -> float:
    """Return the peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _step(step: str, model: nn.Module, batch: PhysicalBatch) -> Callable[[], None]:
    """Return one gradient step as a function."""
    if step == PLAIN:

        def plain() -> None:
            """Leave the ordinary gradient in `.grad`, then let it go."""
            (token_loss(model, batch) * batch.weights).sum().backward()  # type: ignore[no-untyped-call]
            model.zero_grad(set_to_none=True)

        return plain
    engine = make_engine(step, ClipRule(mode="flat", max_grad_norm=0.1))

    def private() -> None:
        """Form the clipped sum, then let it go."""
        engine.clipped_sum(model, [batch])

    return private


def model_of(case: Case) -> nn.Module:
    """Return a randomly initialised token classifier of the case's shape, in training mode."""
    config = BertConfig(
        hidden_size=case.hidden,
        num_hidden_layers=case.layers,
        num_attention_heads=12,
        intermediate_size=4 * case.hidden,
    )
    config.num_labels = 5
    model: nn.Module = BertForTokenClassification(config)
    return model.train()


def windows_of(case: Case) -> PhysicalBatch:
    """Return random windows without padding, each a unit of its own."""
    shape = (case.windows, case.tokens)
    return PhysicalBatch(
        input_ids=torch.randint(1000, 30000, shape),
        attention_mask=torch.ones(shape, dtype=torch.int64),
        labels=torch.randint(0, 5, shape),
        units=torch.arange(case.windows),
        weights=torch.full((case.windows,), 1.0 / case.tokens),
        num_units=case.windows,
    )


def _noise_seconds(values: int) -> float:
    """Return the seconds that 22 million noise values take, measured on `values` of them."""
    start = time.perf_counter()
    SecureGenerator().gaussian(values, std=1.0)
    return (time.perf_counter() - start) * _NOISE_VALUES / values


def _in_child(function: Callable[..., T], *arguments: object) -> T:
    """Return what `function` gives in a process of its own, with the imports done and no other memory."""
    answer: T = in_child(_prepared, torch.get_num_threads(), function, arguments, preload=__name__)
    return answer


def _prepared(threads: int, function: Callable[..., T], arguments: tuple[object, ...]) -> T:
    """Run `function` in a child that is set up as a trainer's process is."""
    # As the trainer does; it speeds the plain step up too.
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    return function(*arguments)
