"""Local training without privacy: AdamW, linear warm-up and decay, gradient clipping, FedProx.

Adapter module (torch). Deterministic under the plan's seed on one device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from common.batching import batches_by_length, collate
from common.model import autocast, autocast_dtype
from common.plan import Plan, Training
from common.records import Example
from common.seeding import derive_seed, torch_seed
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
    warmup = max(1, round(total * training.warmup_fraction))
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return max(0.0, (total - step) / max(1, total - warmup + 1))


def parameter_groups(model: nn.Module, training: Training) -> list[dict[str, object]]:
    """Split trained parameters: no decay for biases and norms, a rate of its own for the head if asked."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            head = "classifier" in name
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


class LocalTrainer:
    """Trains one model on one site's windows.

    Args:
        model: The shared classifier, already on its device.
        plan: The agreed plan.
        pad_id: The tokenizer's padding id.
    """

    def __init__(self, model: nn.Module, plan: Plan, *, pad_id: int) -> None:
        self.model = model
        self.plan = plan
        self.pad_id = pad_id
        self.device = next(model.parameters()).device
        self.dtype = autocast_dtype(self.device, plan.training.precision)

    def train(
        self,
        examples: Sequence[Example],
        *,
        site: str,
        server_round: int,
        on_step: Callable[[Progress], None] | None = None,
    ) -> TrainingResult:
        """Run one round of local training, from the model's present parameters.

        Args:
            examples: The site's windows; at least one.
            site: The site's name; shuffling and dropout depend on it.
            server_round: 1-based; the learning-rate schedule runs over all rounds.
            on_step: Called after each optimizer step.
        """
        steps = self.steps_per_round(len(examples))
        federation = self.plan.federation
        session = FitSession(
            self, total_steps=steps * federation.rounds, first_step=steps * (server_round - 1)
        )
        with torch_seed(self.plan.seed, "train", site, server_round):
            return session.run(
                examples, steps, derive_seed(self.plan.seed, "order", site, server_round), on_step
            )

    def steps_per_round(self, num_examples: int) -> int:
        """Optimizer steps that one site makes in one round."""
        federation = self.plan.federation
        per_epoch = math.ceil(num_examples / self.plan.training.batch_size)
        return federation.local_steps or per_epoch * federation.local_epochs


class FitSession:
    """An optimizer with its schedule and, for FedProx, the point it is pulled back to."""

    def __init__(self, trainer: LocalTrainer, *, total_steps: int, first_step: int = 0) -> None:
        self.trainer = trainer
        self.training = trainer.plan.training
        self.optimizer = torch.optim.AdamW(parameter_groups(trainer.model, self.training), fused=True)
        self.total_steps = total_steps
        self.step_index = first_step
        self.trained = [p for p in trainer.model.parameters() if p.requires_grad]
        pulled = self.training.fedprox_mu > 0
        self.anchor = [p.detach().clone() for p in self.trained] if pulled else []

    def run(
        self,
        examples: Sequence[Example],
        steps: int,
        order_seed: int,
        on_step: Callable[[Progress], None] | None = None,
    ) -> TrainingResult:
        """Take `steps` optimizer steps over the windows, epoch after epoch in a fresh order."""
        self.trainer.model.train()
        generator = np.random.default_rng(order_seed)
        done, seen, tokens, loss_sum = 0, 0, 0, 0.0
        while done < steps:
            for batch in batches_by_length(
                examples, batch_size=self.training.batch_size, generator=generator
            ):
                loss, count = self._step(batch)
                done, seen, tokens, loss_sum = done + 1, seen + len(batch), tokens + count, loss_sum + loss
                if on_step is not None:
                    on_step(Progress(step=done, steps=steps))
                if done == steps:
                    break
        return TrainingResult(num_examples=seen, num_tokens=tokens, loss_sum=loss_sum, steps=done)

    def _step(self, batch: Sequence[Example]) -> tuple[float, int]:
        """Take one optimizer step; return the summed loss and the number of labelled words."""
        trainer = self.trainer
        inputs = collate(batch, trainer.pad_id).to(trainer.device)
        count = int((inputs.labels != IGNORED).sum())
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(trainer.device, trainer.dtype):
            logits = trainer.model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits
        loss = token_loss(logits, inputs.labels)
        (loss / max(count, 1)).backward()  # type: ignore[no-untyped-call]
        self._pull_back()
        nn.utils.clip_grad_norm_(self.trained, self.training.max_grad_norm)
        factor = schedule(self.step_index, self.total_steps, self.training)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.optimizer.step()
        self.step_index += 1
        return float(loss.detach()), count

    def _pull_back(self) -> None:
        """Add FedProx's gradient mu (w - w_global) (Li et al. 2020, eq. 2)."""
        with torch.no_grad():
            for parameter, origin in zip(self.trained, self.anchor, strict=False):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter - origin, alpha=self.training.fedprox_mu)
