"""The clipping engines that a plan can choose, and everything that touches Opacus.

All give the same clipped sum. `hooks` builds every window's gradient with Opacus's samplers and is the
reference. `ghost` takes norms from Opacus's ghost clipping and runs a second backward pass. `bookkeeping`
is ours and the default.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from opacus.grad_sample import GradSampleHooks, GradSampleHooksFastGradientClipping
from torch import Tensor, nn

from client.bookkeeping import BookkeepingEngine
from client.clip_rule import ClipRule
from client.clipped_sum import ClippingEngine, LossFunction, Total, not_reached
from client.layer_gradients import GRAM_ALLOWANCE, UnitLayout
from client.sampling import PhysicalBatch
from common.errors import ModelError, ValidationError
from common.validation import require_choice

ENGINES = ("bookkeeping", "ghost", "hooks")


def make_engine(name: str, rule: ClipRule, *, dtype: torch.dtype = torch.float32) -> ClippingEngine:
    """Return a clipping engine.

    Args:
        name: One of `ENGINES`.
        rule: How to clip.
        dtype: What the model computes in, `torch.float32` or `torch.bfloat16`.

    Raises:
        ValidationError: The name is unknown, or the engine cannot follow the rule.
    """
    require_choice("engine", name, ENGINES)
    if name == "hooks":
        return HooksEngine(rule, dtype=dtype)
    if name == "ghost":
        return GhostEngine(rule, dtype=dtype)
    return BookkeepingEngine(rule, dtype=dtype, sampler=window_gradients)


def window_gradients(layer: nn.Module, inputs: list[Tensor], gradient: Tensor) -> Mapping[Tensor, Tensor]:
    """Return the gradient of each parameter for each window, by Opacus's sampler for this type of layer.

    Args:
        layer: The layer.
        inputs: What the layer was called with, windows first.
        gradient: With respect to the layer's output, windows first.

    Returns:
        `(windows, *shape)` by parameter.

    Raises:
        ModelError: Opacus has no sampler for the layer.
    """
    sampler = GradSampleHooks.GRAD_SAMPLERS.get(type(layer))
    if sampler is None:
        raise ModelError(
            f"Opacus has no gradient sampler for a trained {type(layer).__name__}. Freeze that layer or use "
            "another model."
        )
    sampled: dict[Tensor, Tensor] = sampler(layer, inputs, gradient)
    _drop_padding_rows(layer, sampled)
    return sampled


class HooksEngine(ClippingEngine):
    """The reference: Opacus builds the gradient of every window."""

    name = "hooks"

    def _add_units(self, model: nn.Module, batch: PhysicalBatch, loss_fn: LossFunction, total: Total) -> None:
        """Build, sum by unit, clip and add."""
        layout = UnitLayout.of(batch.units)
        with _attached(GradSampleHooks, model), _gradients_aside(model):
            self._loss(model, batch.take(layout.order), loss_fn).backward()  # type: ignore[no-untyped-call]
            built: dict[Tensor, Tensor] = {
                p: layout.sum(_grad_sample(p, total)) for p in total.parameters.values()
            }
        _drop_padding_rows(model, built)
        squared = next(iter(built.values())).new_zeros(total.num_groups, layout.num_units)
        for parameter, gradients in built.items():
            norms = torch.linalg.vector_norm(gradients.flatten(1), dim=1)
            squared[total.group_of[parameter]] += norms.square()
        factors = total.factors(squared, numbers=layout.numbers, num_units=batch.num_units)
        for parameter, gradients in built.items():
            chosen = factors[total.group_of[parameter]]
            keep = chosen > 0.0
            total.sums.add(parameter, torch.einsum("u,u...->...", chosen[keep], gradients[keep]))


class GhostEngine(ClippingEngine):
    """Opacus's ghost clipping: norms from one backward pass, the sum from a second one on a weighted loss.

    Opacus measures windows and lets rounding hide the norm of tokens that cancel; here its norm samplers
    see all windows of a unit as one longer window, and norms get the allowance of `layer_gradients`. Under
    bfloat16 the second pass rounds anew, which is why tau is larger than for the other engines.
    """

    name = "ghost"
    tau_by_dtype: ClassVar[Mapping[torch.dtype, float]] = {torch.float32: 2.0**-12, torch.bfloat16: 2.0**-4}

    def __init__(self, rule: ClipRule, *, dtype: torch.dtype = torch.float32) -> None:
        """Keep the rule.

        Raises:
            ValidationError: The rule clips per layer, which one weighted loss cannot express.
        """
        super().__init__(rule, dtype=dtype)
        if rule.mode == "per_layer":
            raise ValidationError(
                "The ghost engine weights the loss of a unit as a whole and cannot clip per_layer. "
                "Choose the engine bookkeeping or hooks, or the mode flat or auto."
            )

    def _add_units(self, model: nn.Module, batch: PhysicalBatch, loss_fn: LossFunction, total: Total) -> None:
        """Measure; where a unit is not finite, measure the others again without it; clip and add."""
        squared = torch.zeros(batch.num_units, device=batch.units.device)
        present = torch.unique(batch.units)
        rest = batch
        with _gradients_aside(model):
            while rest.num_windows:
                losses, layout = self._measure(model, rest, loss_fn, total, squared)
                finite = torch.isfinite(squared)
                if bool(finite[layout.numbers].all()):
                    break
                # The second pass would spread NaN through the products, so these windows go altogether.
                rest = rest.take(torch.nonzero(finite[rest.units]).flatten())
            factors = total.factors(squared[present].unsqueeze(0), numbers=present, num_units=batch.num_units)
            if rest.num_windows:
                by_number = torch.zeros_like(squared)
                by_number[present] = factors[0]
                ordered = rest.take(layout.order)
                model.zero_grad()
                (losses * ordered.weights * by_number[ordered.units]).sum().backward()  # type: ignore[no-untyped-call]
                for parameter in total.parameters.values():
                    if parameter.grad is not None:
                        total.sums.add(parameter, parameter.grad)

    def _measure(
        self, model: nn.Module, batch: PhysicalBatch, loss_fn: LossFunction, total: Total, squared: Tensor
    ) -> tuple[Tensor, UnitLayout]:
        """Write the squared norms of the units; return the losses in sorted order, with their graph."""
        layout = UnitLayout.of(batch.units)
        ordered = batch.take(layout.order)
        with _attached(_UnitNormHooks, model) as hooks:
            hooks.layout = layout
            losses = self._losses(model, ordered, loss_fn)
            (losses * ordered.weights).sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
            for parameter in total.parameters.values():
                if parameter not in hooks.squared:
                    raise not_reached(total.layer_of[parameter])
            squared[layout.numbers] = torch.stack([hooks.squared[p] for p in total.parameters.values()]).sum(
                dim=0
            )
        return losses, layout


class _UnitNormHooks(GradSampleHooksFastGradientClipping):  # type: ignore[misc]
    """Opacus's ghost-clipping hooks, with units in place of samples."""

    layout: UnitLayout

    def __init__(self, model: nn.Module, **options: Any) -> None:
        """Attach to the model."""
        self.squared: dict[Tensor, Tensor] = {}
        super().__init__(model, **options)

    def capture_backprops_hook(
        self, module: nn.Module, _inputs: object, outputs: Any, loss_reduction: str, batch_first: bool
    ) -> None:
        """Measure the layer's parameters for each unit."""
        if not self.hooks_enabled:
            return
        saved, gradient = self.rearrange_grad_samples(
            module=module,
            backprops=outputs[0].detach(),
            loss_reduction=loss_reduction,
            batch_first=batch_first,
        )
        for parameter, squared in self._measure(module, saved, gradient.float()).items():
            if parameter in self.squared:
                raise ModelError(
                    f"A {type(module).__name__} is used twice, which ghost clipping cannot measure. "
                    "Choose the engine bookkeeping or hooks."
                )
            self.squared[parameter] = squared

    def _measure(self, module: nn.Module, saved: list[Tensor], gradient: Tensor) -> dict[Tensor, Tensor]:
        """Return `(units,)` squared norms by trained parameter."""
        sampler = self.NORM_SAMPLERS.get(type(module))
        if sampler is None:
            built = window_gradients(module, [tensor.float() for tensor in saved], gradient)
            norms = {
                parameter: torch.linalg.vector_norm(self.layout.sum(gradients).flatten(1), dim=1)
                for parameter, gradients in built.items()
            }
        elif isinstance(module, nn.Embedding):
            if module.padding_idx is not None:
                gradient = gradient.masked_fill((saved[0] == module.padding_idx).unsqueeze(-1), 0.0)
            ids = _deepened(saved[0].contiguous(), self.layout)
            norms = sampler(module, [ids], _deepened(gradient, self.layout))
        else:
            inputs, gradient = _deepened(saved[0].float(), self.layout), _deepened(gradient, self.layout)
            norms = sampler(module, [inputs], gradient)
            if isinstance(module, nn.Linear) and module.weight in norms:
                norms[module.weight] = _upper(norms[module.weight], inputs, gradient)
        return {p: norm.square() for p, norm in norms.items() if p.requires_grad}


def _deepened(rows: Tensor, layout: UnitLayout) -> Tensor:
    """Return `(windows, tokens, ...)` as `(units, tokens of all windows, ...)`, filled up with zeros."""
    if layout.num_units == rows.shape[0]:
        return rows
    rows = rows if rows.dim() > 1 else rows.unsqueeze(1)
    depths = torch.bincount(layout.owner)
    first = torch.cumsum(depths, dim=0) - depths
    slot = torch.arange(rows.shape[0], device=rows.device) - first[layout.owner]
    deep = rows.new_zeros(layout.num_units, int(depths.max()), *rows.shape[1:])
    deep[layout.owner, slot] = rows
    return deep.flatten(1, 2)


def _upper(norms: Tensor, inputs: Tensor, gradients: Tensor) -> Tensor:
    """Return Gram norms with the rounding allowance: without it, tokens that cancel hide a norm."""
    if inputs.dim() == 2:
        return norms
    sizes = torch.linalg.vector_norm(inputs, dim=-1) * torch.linalg.vector_norm(gradients, dim=-1)
    squared: Tensor = norms.square() + GRAM_ALLOWANCE * sizes.flatten(1).sum(dim=1).square()
    return squared.sqrt()


def _grad_sample(parameter: Tensor, total: Total) -> Tensor:
    """Return what Opacus built for a parameter, `(windows, *shape)` float32."""
    sampled = getattr(parameter, "grad_sample", None)
    if not isinstance(sampled, Tensor):
        raise not_reached(total.layer_of[parameter])
    return sampled.float()


def _drop_padding_rows(model: nn.Module, built: Mapping[Tensor, Tensor]) -> None:
    """Zero the padding row of each embedding: Opacus keeps it, autograd gives it no gradient."""
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None and module.weight in built:
            built[module.weight][:, module.padding_idx] = 0.0


@contextlib.contextmanager
def _attached(hooks_type: Any, model: nn.Module) -> Iterator[Any]:
    """Attach Opacus's hooks for one pass, and take everything off again."""
    try:
        hooks = hooks_type(model, loss_reduction="sum")
    except NotImplementedError as error:
        raise ModelError(
            "Opacus cannot clip this model: a trained layer has buffers. Freeze it or use another model."
        ) from error
    try:
        yield hooks
    except NotImplementedError as error:
        raise ModelError(f"Opacus cannot clip this model: {error}. Choose the engine bookkeeping.") from error
    finally:
        hooks.cleanup()
        for module in model.modules():
            for attribute in ("activations", "max_batch_len"):
                module.__dict__.pop(attribute, None)


@contextlib.contextmanager
def _gradients_aside(model: nn.Module) -> Iterator[None]:
    """Let the passes inside use `.grad`, and put back what was there."""
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.grad = None
    try:
        with warnings.catch_warnings():
            # The first trained layer has no input that asks for a gradient; torch warns, and it is meant so.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient
