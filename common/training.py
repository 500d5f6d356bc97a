"""Fitting a model to windows without privacy: AdamW, linear warm-up and decay, gradient clipping, FedProx.

Sites without privacy use it on their records, and the server on public notes for a warm-up. Adapter module
(torch).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from common.batching import Batch, batches_by_length, collate
from common.model import HEAD, autocast, autocast_dtype
from common.plan import Training
from common.records import Example
from common.tokenization import IGNORED


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What local training did, as sums that can be added over sites.

    Attributes:
        num_examples: Windows seen, counted once per epoch.
        num_tokens: Labelled words that the loss covered.
        loss_sum: Sum of the cross-entropy (nats) over those words.
        steps: Optimizer steps.
    """

    num_examples: int
    num_tokens: int
    loss_sum: float
    steps: int


class Adversary(Protocol):
    """Forms the gradient of a batch from several passes, as adversarial training does."""

    def backward(
        self, model: nn.Module, mask: torch.Tensor, loss: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """Add the gradient to `.grad`; return the loss of the first pass, a scalar."""


@runtime_checkable
class EpochWindows(Protocol):
    """Windows that are new in each epoch, as augmented ones are."""

    def __len__(self) -> int:
        """Windows of one epoch, about: what the number of steps is planned by."""

    def epoch(self, number: int) -> Sequence[Example]:
        """Return the windows of an epoch, from 0; the same number gives the same windows."""


Windows = Sequence[Example] | EpochWindows


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a site stands within its local training."""

    step: int
    steps: int


def token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of cross-entropy over labelled words.

    Args:
        logits: `(batch, tokens, tags)`.
        labels: `(batch, tokens)`, -100 where a piece carries no label.

    Returns:
        A scalar float32, in nats.
    """
    return F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def schedule(step: int, total: int, training: Training) -> float:
    """Learning-rate factor in [0, 1] of a 0-based step: linear warm-up, then linear decay over the whole run."""
    # A plan that asks for some warm-up gets one step of it, one that asks for none gets none.
    warmup = max(1, round(total * training.warmup_fraction)) if training.warmup_fraction else 0
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return max(0.0, (total - step) / max(1, total - warmup + bool(warmup)))


def parameter_groups(model: nn.Module, training: Training) -> list[dict[str, object]]:
    """Split trained parameters: no decay for biases and norms, a rate of its own for the head if asked."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            head = HEAD in name
            groups.setdefault((parameter.ndim > 1, head), []).append(parameter)
    head_rate = training.head_learning_rate or training.learning_rate
    return [
        {
            "params": parameters,
            "weight_decay": training.weight_decay if decays else 0.0,
            "lr": head_rate if head else training.learning_rate,
            "base_lr": head_rate if head else training.learning_rate,
        }
        for (decays, head), parameters in groups.items()
    ]


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's learning rate to its base rate times the schedule's factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def pull_back(trained: Sequence[nn.Parameter], anchor: Sequence[torch.Tensor], mu: float) -> None:
    """Add FedProx's gradient mu (w - w_global) (Li et al. 2020, eq. 2); nothing without an anchor."""
    with torch.no_grad():
        for parameter, origin in zip(trained, anchor, strict=bool(anchor)):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - origin, alpha=mu)


class FitSession:
    """An optimizer with its schedule and, for FedProx, the point it is pulled back to.

    Args:
        model: The classifier on its device; what requires gradients is trained.
        training: Rates, batch size and precision.
        pad_id: The tokenizer's padding id.
        total_steps: Steps that the schedule runs over.
        first_step: Steps of the schedule that are over.
        adversary: Forms the gradients, for adversarial training; one plain pass by default.
    """

    def __init__(
        self,
        model: nn.Module,
        training: Training,
        *,
        pad_id: int,
        total_steps: int,
        first_step: int = 0,
        adversary: Adversary | None = None,
    ) -> None:
        self.model = model
        self.training = training
        self.pad_id = pad_id
        self.device = next(model.parameters()).device
        self.dtype = autocast_dtype(self.device, training.precision)
        self.optimizer = torch.optim.AdamW(parameter_groups(model, training), fused=True)
        self.total_steps = total_steps
        self.step_index = first_step
        self.adversary = adversary
        self.trained = [p for p in model.parameters() if p.requires_grad]
        pulled = training.fedprox_mu > 0
        self.anchor = [p.detach().clone() for p in self.trained] if pulled else []

    def run(
        self,
        examples: Windows,
        steps: int,
        order_seed: int,
        on_step: Callable[[Progress], None] | None = None,
        *,
        first_epoch: int = 0,
    ) -> TrainingResult:
        """Take `steps` optimizer steps over the windows, epoch after epoch in a fresh order."""
        self.model.train()
        generator = np.random.default_rng(order_seed)
        done, seen, tokens, loss_sum = 0, 0, 0, 0.0
        for epoch in itertools.count(first_epoch):
            if done == steps:
                break
            windows = examples.epoch(epoch) if isinstance(examples, EpochWindows) else examples
            for batch in batches_by_length(windows, batch_size=self.training.batch_size, generator=generator):
                loss, count = self._step(batch)
                done, seen, tokens, loss_sum = done + 1, seen + len(batch), tokens + count, loss_sum + loss
                if on_step is not None:
                    on_step(Progress(step=done, steps=steps))
                if done == steps:
                    break
        return TrainingResult(num_examples=seen, num_tokens=tokens, loss_sum=loss_sum, steps=done)

    def _step(self, batch: Sequence[Example]) -> tuple[float, int]:
        """Take one optimizer step; return the summed loss and the number of labelled words."""
        inputs = collate(batch, self.pad_id).to(self.device)
        count = int((inputs.labels != IGNORED).sum())
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(inputs, max(count, 1))
        pull_back(self.trained, self.anchor, self.training.fedprox_mu)
        nn.utils.clip_grad_norm_(self.trained, self.training.max_grad_norm)
        set_rates(self.optimizer, schedule(self.step_index, self.total_steps, self.training))
        self.optimizer.step()
        self.step_index += 1
        return loss * max(count, 1), count

    def _backward(self, inputs: Batch, count: int) -> float:
        """Leave the gradient of the mean loss in `.grad`; return that loss."""

        def mean_loss() -> torch.Tensor:
            """Run the model once."""
            with autocast(self.device, self.dtype):
                logits = self.model(**inputs.inputs).logits
            return token_loss(logits, inputs.labels) / count

        if self.adversary is not None:
            return float(self.adversary.backward(self.model, inputs.attention_mask, mean_loss))
        loss = mean_loss()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())
