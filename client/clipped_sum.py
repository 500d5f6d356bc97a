"""The sum of clipped unit gradients over one logical batch, and what every clipping engine shares."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from client.clip_rule import ClipRule
from client.layer_gradients import Sums
from client.sampling import IGNORED_LABEL, PhysicalBatch
from common.embeddings import shifted_embeddings
from common.errors import ModelError, ValidationError

# Gives the loss of each window, `(windows,)`, from the model and a batch.
LossFunction = Callable[[nn.Module, PhysicalBatch], Tensor]


def token_loss(model: nn.Module, batch: PhysicalBatch) -> Tensor:
    """Return the cross-entropy of each window, summed over its labelled tokens, `(windows,)` float32.

    Args:
        model: A Hugging Face token classifier.
        batch: The windows.
    """
    with shifted_embeddings(model, batch.offsets):
        logits = model(**batch.inputs).logits.float()
    losses = F.cross_entropy(
        logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
    )
    return losses.view_as(batch.labels).sum(dim=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClippedSum:
    """A logical batch's clipped sum. Everything in it is sensitive until noise is added.

    Attributes:
        gradients: Float32 sum over units by parameter name, for every trained parameter.
        num_units: Units that took part; never a denominator.
        num_nonfinite: Units among them that contributed zero because their gradient was not finite.
        norms: `(units,)` the L2 norm of each unit's gradient before clipping, in the order of the batches.
    """

    gradients: Mapping[str, Tensor] = field(repr=False)
    num_units: int = field(repr=False)
    num_nonfinite: int = field(repr=False)
    norms: Tensor = field(repr=False)


class ClippingEngine(ABC):
    """Computes clipped sums; subclasses differ in how they find the norms, not in what they give.

    Formal guarantees: The sum changes by at most `sensitivity()` in L2 norm when one unit is added or
    removed. This rests on three things. Each unit's gradient depends on that unit, the model and randomness
    that is independent of other units; batch normalisation is therefore refused, and dropout must draw from
    secret randomness (`client.noise.secret_dropout`), because masks that follow from a known seed would
    tie a unit's mask to its place in the batch. Each unit's gradient is scaled by `rule`. And the released
    gradient exceeds the measured norm by a factor of at most `1 + tau`, from rounding; tau is tested for
    each engine and dtype, not proved.

    Args:
        rule: How to clip.
        dtype: What the model computes in: `torch.float32`, or `torch.bfloat16` by autocast. Norms and
            sums are float32 in both.

    Raises:
        ValidationError: The dtype is neither of the two, or the engine cannot follow the rule.
    """

    name: ClassVar[str]
    # The rounding factor by dtype.
    tau_by_dtype: ClassVar[Mapping[torch.dtype, float]] = {torch.float32: 2.0**-14, torch.bfloat16: 2.0**-10}

    def __init__(self, rule: ClipRule, *, dtype: torch.dtype = torch.float32) -> None:
        """Keep the rule."""
        if dtype not in self.tau_by_dtype:
            raise ValidationError(f"dtype is {dtype}; clipping computes in torch.float32 or torch.bfloat16.")
        self.rule = rule
        self.dtype = dtype

    @property
    def tau(self) -> float:
        """Most by which rounding may raise a released norm above the bound, relative to it."""
        return self.tau_by_dtype[self.dtype]

    def sensitivity(self) -> float:
        """Return the L2 sensitivity of the sum when one unit is added or removed: C (1 + tau)."""
        return self.rule.max_grad_norm * (1.0 + self.tau)

    def clipped_sum(
        self, model: nn.Module, batches: Iterable[PhysicalBatch], loss_fn: LossFunction = token_loss
    ) -> ClippedSum:
        """Return the sum over units of the clipped gradient of the unit's loss.

        The unit's loss is the sum over its windows of weight times window loss.

        Args:
            model: In training mode; parameters that require a gradient are trained. Its `.grad` fields are
                neither read nor changed.
            batches: The physical batches of one logical batch; none at all is a valid draw.
            loss_fn: The loss of each window, which must not mix windows.

        Raises:
            ModelError: The model mixes the windows of a batch, or has a layer that no engine can clip.
            ValidationError: The parts of a large unit do not follow each other.
        """
        _check_model(model)
        total = Total(model, self.rule)
        part: PartialUnit | None = None
        with _full_precision():
            for batch in batches:
                if part is None and batch.complete:
                    self._add_units(model, batch, loss_fn, total)
                    continue
                part = part or PartialUnit(total)
                part.add(self._loss(model, batch, loss_fn), batch)
                if batch.complete:
                    part.finish()
                    part = None
        if part is not None:
            raise ValidationError("The last physical batch is a part of a unit whose rest is missing.")
        return total.result()

    @abstractmethod
    def _add_units(self, model: nn.Module, batch: PhysicalBatch, loss_fn: LossFunction, total: Total) -> None:
        """Add the clipped gradients of a batch of whole units."""

    def _loss(self, model: nn.Module, batch: PhysicalBatch, loss_fn: LossFunction) -> Tensor:
        """Return the weighted sum of the windows' losses."""
        return (self._losses(model, batch, loss_fn) * batch.weights).sum()

    def _losses(self, model: nn.Module, batch: PhysicalBatch, loss_fn: LossFunction) -> Tensor:
        """Return the loss of each window, computed in this engine's dtype."""
        device = batch.input_ids.device.type
        with (
            windows_first(model, batch.num_windows),
            torch.autocast(device, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16),
        ):
            losses = loss_fn(model, batch)
        if losses.shape != (batch.num_windows,):
            raise ValidationError(
                f"The loss has shape {tuple(losses.shape)}; it must be one number for each of the "
                f"{batch.num_windows} windows."
            )
        return losses.float()


class Total:
    """A clipped sum in the making.

    Attributes:
        parameters: Trained parameters by name.
        sums: What was added so far.
        layer_of: The layer of each trained parameter: the first module that owns it.
        group_of: The index of the clipping group of each trained parameter.
    """

    def __init__(self, model: nn.Module, rule: ClipRule) -> None:
        """Start from zero.

        Raises:
            ModelError: The model trains nothing.
        """
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ModelError("The model has no trained parameter; unfreeze a layer or add LoRA.")
        self.sums = Sums()
        self.layer_of: dict[Tensor, str] = {p: n.rpartition(".")[0] for n, p in self.parameters.items()}
        self._rule = rule
        self._groups = rule.groups(list(dict.fromkeys(self.layer_of.values())))
        index = {group: position for position, group in enumerate(self._groups)}
        self.group_of = {p: index.get(layer, 0) for p, layer in self.layer_of.items()}
        self._norms: list[Tensor] = []
        self._num_nonfinite = 0

    @property
    def num_groups(self) -> int:
        """Groups of layers that are clipped on their own."""
        return len(self._groups)

    def factors(self, squared_norms: Tensor, *, numbers: Tensor, num_units: int) -> Tensor:
        """Note the norms of a batch's units and return their factors.

        Args:
            squared_norms: `(groups, units)` float32, for units in any order.
            numbers: `(units,)` the batch's own number of each of them.
            num_units: Units in the batch; one without windows has norm 0.

        Returns:
            `(groups, units)` float32, in the order given.
        """
        squared = squared_norms.sum(dim=0)
        finite = torch.isfinite(squared)
        numbered = squared.new_zeros(num_units)
        numbered[numbers] = squared.sqrt()
        self._norms.append(numbered.cpu())
        self._num_nonfinite += int((~finite).sum())
        # A sum over groups that overflows is as good as a group that is not finite.
        return self._rule.factors(squared_norms.masked_fill(~finite, torch.inf), self._groups)

    def result(self) -> ClippedSum:
        """Return the sum of everything that was added."""
        norms = torch.cat(self._norms) if self._norms else torch.zeros(0)
        return ClippedSum(
            gradients={name: self.sums.dense(p) for name, p in self.parameters.items()},
            num_units=int(norms.shape[0]),
            num_nonfinite=self._num_nonfinite,
            norms=norms,
        )


class PartialUnit:
    """One unit that is larger than a physical batch: its gradient is added up, then clipped.

    It costs what a step without privacy costs, and one more copy of the trained parameters.
    """

    def __init__(self, total: Total) -> None:
        """Start a unit."""
        self._total = total
        self._parameters = list(total.parameters.values())
        self._sums = Sums()

    def add(self, loss: Tensor, batch: PhysicalBatch) -> None:
        """Add the gradient of one part.

        Raises:
            ValidationError: The batch holds other units too.
        """
        if batch.num_units != 1:
            raise ValidationError(
                f"A physical batch that is a part of a unit holds {batch.num_units} units; it must hold one."
            )
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            if gradient is None:
                raise not_reached(self._total.layer_of[parameter])
            self._sums.add(parameter, gradient)

    def finish(self) -> None:
        """Clip the whole and add it to the total."""
        squared = torch.zeros(self._total.num_groups, 1, device=self._parameters[0].device)
        for parameter in self._parameters:
            norm = torch.linalg.vector_norm(self._sums.dense(parameter))
            squared[self._total.group_of[parameter]] += norm.square()
        only = torch.zeros(1, dtype=torch.int64, device=squared.device)
        factors = self._total.factors(squared, numbers=only, num_units=1)[:, 0].tolist()
        for parameter in self._parameters:
            # A factor of 0 marks a unit that is not finite: zero times NaN would be NaN.
            if factor := factors[self._total.group_of[parameter]]:
                self._total.sums.add(parameter, self._sums.dense(parameter), factor=factor)


def not_reached(layer: str) -> ModelError:
    """Return the error for a trained layer that the loss does not depend on."""
    return ModelError(f"The loss does not depend on the trained layer {layer}. Freeze it, or remove it.")


@contextlib.contextmanager
def windows_first(model: nn.Module, num_windows: int) -> Iterator[None]:
    """Give every embedding one row of ids for each window.

    Models look positions up once, as `(1, tokens)`, and let the result spread over the batch; the gradient
    of each window would be lost in that one row.
    """

    def expand(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Spread a single row over the windows."""
        ids = args[0]
        if ids.dim() < 2 or ids.shape[0] != 1 or num_windows == 1:
            return args
        return (ids.expand(num_windows, *ids.shape[1:]).contiguous(), *args[1:])

    handles = [
        module.register_forward_pre_hook(expand)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_model(model: nn.Module) -> None:
    """Refuse models for which a unit's gradient is not a function of the unit."""
    if not model.training:
        raise ModelError("The model is in evaluation mode; call model.train() before a private step.")
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise ModelError(
            "Clipping needs the activations of one forward pass; turn gradient checkpointing off."
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ModelError(f"Layer {name} normalises over the batch, which mixes units; use another model.")
        if isinstance(module, nn.Embedding) and (module.scale_grad_by_freq or module.max_norm is not None):
            raise ModelError(
                f"Embedding {name} uses scale_grad_by_freq or max_norm, which mix units; turn them off."
            )


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Keep float32 products at float32: TF32 would round norms to 10 bits."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
