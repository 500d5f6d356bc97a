"""A site's local training without privacy, round by round. Deterministic under the plan's seed on one device."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from client.adversarial import PlainAdversary
from common.plan import Plan
from common.seeding import derive_seed, torch_seed
from common.training import FitSession, Progress, TrainingResult, Windows


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

    def train(
        self,
        examples: Windows,
        *,
        site: str,
        server_round: int,
        on_step: Callable[[Progress], None] | None = None,
    ) -> TrainingResult:
        """Run one round of local training, from the model's present parameters.

        Args:
            examples: The site's windows, or those of each epoch; at least one.
            site: The site's name; shuffling and dropout depend on it.
            server_round: 1-based; the learning-rate schedule runs over all rounds.
            on_step: Called after each optimizer step.
        """
        steps = self.steps_per_round(len(examples))
        rounds = self.plan.federation.rounds
        session = self.session(total_steps=steps * rounds, first_step=steps * (server_round - 1))
        with torch_seed(self.plan.seed, "train", site, server_round):
            return session.run(
                examples, steps, derive_seed(self.plan.seed, "order", site, server_round), on_step
            )

    def session(self, *, total_steps: int, first_step: int = 0) -> FitSession:
        """Return a fresh optimizer with its schedule."""
        section = self.plan.adversarial
        return FitSession(
            self.model,
            self.plan.training,
            pad_id=self.pad_id,
            total_steps=total_steps,
            first_step=first_step,
            adversary=None if section is None else PlainAdversary(section=section),
        )

    def steps_per_round(self, num_examples: int) -> int:
        """Optimizer steps that one site makes in one round."""
        federation = self.plan.federation
        per_epoch = math.ceil(num_examples / self.plan.training.batch_size)
        return federation.local_steps or per_epoch * federation.local_epochs
