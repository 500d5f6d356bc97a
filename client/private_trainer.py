"""A site's private training of one round: the one place where a plan's privacy is put together.

Sampling, clipping, noise, denominator and number of steps all come from one `PrivateRecipe`, and so does
the mechanism that the ledger is charged with. Adapter module (torch).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from client.adversarial import UnitAdversary
from client.clip_rule import ClipRule
from client.clipped_sum import ClippingEngine
from client.clipping import make_engine
from client.noise import noised_mean, secret_dropout
from client.sampling import PhysicalBatch, PoissonSampler, Unit, group_units, physical_batches
from common.errors import ModelError
from common.mechanisms import Mechanism, PoissonSubsampledGaussian
from common.model import HEAD, autocast_dtype
from common.plan import Plan, Training
from common.private_plan import denominator, private_section, round_mechanism
from common.records import Example
from common.secure_random import SecureGenerator
from common.training import Progress, parameter_groups, pull_back, schedule, set_rates

_checked: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class PrivateRecipe:
    """What one training of one round does to a site's units, read from plan and roster.

    Formal guarantees: `PrivateTrainer` releases, for each of `mechanism.steps` steps, a sum over units drawn
    at rate `mechanism.q` from secret randomness, each clipped to the engine's sensitivity, with Gaussian
    noise of `mechanism.noise_multiplier` times that sensitivity, and otherwise only post-processes: division
    by a public number, Adam, weight decay, averaging. So one training is an instance of `mechanism`, which
    is what `charged` hands to the ledger.

    Attributes:
        mechanism: Rate, noise and steps of one round.
        denominator: The rate times the roster's public number of units; never the actual number.
        engine: Clips, and knows the sensitivity.
        max_windows: Most windows of one unit that take part.
        window_key: Public bytes that decide which windows of a large unit do.
        token_budget: Most padded tokens in memory at once; no part of the claim.
        averaging: Decay of the exponential average over the round's weights; 0 takes the last.
        optimizer: `adam` or `sgd`, for the noised gradients.
        trained: What the noised steps change: `all`, `layers` or `biases`; the rest of the model stays as it is.
        total_steps: Steps of the whole plan, for the schedule.
        training: Rates and weight decay.
        adversary: Puts perturbed copies beside a unit's windows, for adversarial training.
    """

    mechanism: PoissonSubsampledGaussian
    denominator: float
    engine: ClippingEngine = field(repr=False)
    max_windows: int
    window_key: bytes
    token_budget: int
    averaging: float
    optimizer: str
    trained: str
    total_steps: int
    training: Training
    adversary: UnitAdversary | None = None

    @classmethod
    def of(cls, plan: Plan, *, public_units: int, device: torch.device) -> PrivateRecipe:
        """Read the recipe from a plan and from the roster's public number of units of the site.

        Raises:
            PlanError: The plan is not private, or no noise can meet its target.
        """
        privacy = private_section(plan)
        dtype = autocast_dtype(device, plan.training.precision) or torch.float32
        rule = ClipRule(mode=privacy.clipping, max_grad_norm=privacy.clip)
        return cls(
            mechanism=round_mechanism(plan),
            denominator=denominator(plan, public_units),
            engine=make_engine(privacy.engine, rule, dtype=dtype),
            max_windows=privacy.max_windows_per_unit,
            window_key=bytes.fromhex(plan.hash),
            token_budget=plan.training.physical_tokens,
            averaging=privacy.averaging,
            optimizer=privacy.optimizer,
            trained=privacy.trained,
            total_steps=privacy.steps,
            training=plan.training,
            adversary=UnitAdversary(section=plan.adversarial, dtype=dtype) if plan.adversarial else None,
        )

    @property
    def charged(self) -> tuple[Mechanism, ...]:
        """Everything that one training may release, for the ledger."""
        return (self.mechanism,)

    def units(self, examples: Sequence[Example]) -> tuple[Unit, ...]:
        """Group a site's windows into units.

        Raises:
            DataError: A window has no unit id.
        """
        return group_units(examples, max_windows_per_unit=self.max_windows, key=self.window_key)


class PrivateTrainer:
    """Trains one model on one site's units with noise in every step.

    Args:
        model: The shared classifier, already on its device.
        recipe: What every step is made of.
        pad_id: The tokenizer's padding id.
        generator: Secret randomness; a fresh one by default. Its state is never kept.
        views: Puts the augmented views of drawn units in their place; a function of each unit alone.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: PrivateRecipe,
        *,
        pad_id: int,
        generator: SecureGenerator | None = None,
        views: Callable[[Sequence[Unit]], Sequence[Unit]] | None = None,
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.pad_id = pad_id
        self.device = next(model.parameters()).device
        self.generator = generator or SecureGenerator()
        self.views = views
        self.trained = {
            n: p for n, p in model.named_parameters() if p.requires_grad and _is_trained(n, p, recipe.trained)
        }
        if not self.trained:
            raise ModelError(
                f"privacy.trained is {recipe.trained!r}, and the model trains nothing of that kind; choose 'all'."
            )

    def check(self) -> None:
        """Clip a made-up window, so that a model that cannot be clipped is refused before any charge.

        The sites of a simulation share a model, which is checked once for each engine.

        Raises:
            ModelError: The model mixes units, as batch normalisation does, or has a layer that cannot be clipped.
        """
        engine, adversary = self.recipe.engine, self.recipe.adversary
        name = f"{engine.name}, {self.recipe.trained}, {adversary.section.method if adversary else 'plain'}"
        checked = _checked.setdefault(self.model, set())
        if name in checked:
            return
        ids = torch.full((1, 4), self.pad_id, dtype=torch.int64)
        batch = PhysicalBatch(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            labels=torch.zeros_like(ids),
            units=torch.zeros(1, dtype=torch.int64),
            weights=torch.ones(1),
            num_units=1,
        )
        was_training = self.model.training
        self.model.train()
        with self._only_trained(), secret_dropout(self.generator):
            engine.clipped_sum(self.model, self._copies([batch.to(self.device)]))
        self.model.train(was_training)
        if adversary is not None:
            adversary.check(self.model, pad_id=self.pad_id)
        checked.add(name)

    def train(
        self,
        units: Sequence[Unit],
        *,
        server_round: int,
        on_step: Callable[[Progress], None] | None = None,
    ) -> None:
        """Run one round from the model's present parameters, and leave its result in them.

        No loss and no count is returned: they would be functions of the records without noise.

        Args:
            units: The site's units; none at all trains on noise alone.
            server_round: 1-based; the schedule runs over all rounds.
            on_step: Called after each step, for a progress bar on the same machine.
        """
        recipe, steps = self.recipe, self.recipe.mechanism.steps
        self.model.train()
        sampler = PoissonSampler(units, sampling_rate=recipe.mechanism.q, generator=self.generator)
        optimizer = self._optimizer()
        anchor = [p.detach().clone() for p in self.trained.values()] if recipe.training.fedprox_mu else []
        average = WeightAverage(self.trained.values(), recipe.averaging)
        first = steps * (server_round - 1)
        for step in range(steps):
            self._set_gradients(self.noised_gradients(sampler.draw()))
            pull_back(list(self.trained.values()), anchor, recipe.training.fedprox_mu)
            set_rates(optimizer, schedule(first + step, recipe.total_steps, recipe.training))
            optimizer.step()
            average.add()
            if on_step is not None:
                on_step(Progress(step=step + 1, steps=steps))
        self.model.zero_grad(set_to_none=True)
        average.install()

    def noised_gradients(self, drawn: Sequence[Unit]) -> dict[str, Tensor]:
        """Return the noised mean gradient of one logical batch by parameter name: one charged release."""
        recipe = self.recipe
        units = drawn if self.views is None else self.views(drawn)
        budget = recipe.token_budget // (recipe.adversary.section.copies if recipe.adversary else 1)
        batches = physical_batches(units, token_budget=budget, pad_token_id=self.pad_id)
        with self._only_trained(), secret_dropout(self.generator):
            placed = (batch.to(self.device) for batch in batches)
            clipped = recipe.engine.clipped_sum(self.model, self._copies(placed))
        return noised_mean(
            clipped,
            noise_multiplier=recipe.mechanism.noise_multiplier,
            sensitivity=recipe.engine.sensitivity(),
            denominator=recipe.denominator,
            generator=self.generator,
        )

    def _copies(self, batches: Iterable[PhysicalBatch]) -> Iterable[PhysicalBatch]:
        """Return the batches with their perturbed copies, where the plan trains adversarially."""
        adversary = self.recipe.adversary
        return batches if adversary is None else adversary.batches(self.model, batches)

    @contextmanager
    def _only_trained(self) -> Iterator[None]:
        """Let gradients be of what is trained alone; the model's other parameters are as before afterwards."""
        others = [p for n, p in self.model.named_parameters() if p.requires_grad and n not in self.trained]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)

    def _optimizer(self) -> torch.optim.Optimizer:
        """Return what post-processes the noised gradients."""
        with self._only_trained():
            groups = parameter_groups(self.model, self.recipe.training)
        if self.recipe.optimizer == "sgd":
            return torch.optim.SGD(groups)
        return torch.optim.AdamW(groups, fused=True)

    def _set_gradients(self, gradients: dict[str, Tensor]) -> None:
        """Hand the noised gradients to the optimizer, in the parameters' own `.grad`."""
        for name, parameter in self.trained.items():
            parameter.grad = gradients[name]


def _is_trained(name: str, parameter: Tensor, trained: str) -> bool:
    """Return whether the noised steps change a parameter."""
    if trained == "all" or HEAD in name:
        return True
    return "embeddings" not in name and (trained == "layers" or parameter.ndim == 1)


class WeightAverage:
    """Exponential average of the weights after each step, corrected for its start as Adam's moments are.

    Post-processing of noised steps, so it costs no privacy.

    Args:
        parameters: The trained parameters.
        decay: In [0, 1); 0 keeps no copy and installs nothing.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self._parameters: list[nn.Parameter] = list(parameters)
        self._decay = decay
        self._sums = [torch.zeros_like(p, dtype=torch.float32) for p in self._parameters] if decay else []
        self._mass = 0.0

    @torch.no_grad()
    def add(self) -> None:
        """Take the present weights in."""
        self._mass = self._decay * self._mass + (1 - self._decay)
        for total, parameter in zip(self._sums, self._parameters, strict=bool(self._sums)):
            total.mul_(self._decay).add_(parameter.float(), alpha=1 - self._decay)

    @torch.no_grad()
    def install(self) -> None:
        """Put the average into the parameters."""
        for total, parameter in zip(self._sums, self._parameters, strict=bool(self._sums)):
            parameter.copy_(total / self._mass)
