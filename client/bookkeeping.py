"""Book-keeping: per-unit clipped sums from one backward pass.

Bu et al., "Differentially Private Optimization on Large Foundation Models" (ICML 2023), section 3. Forward
hooks save the inputs of trained layers, gradient hooks save the gradients of their outputs. While the pass
runs, the trained parameters ask for no gradient, so autograd computes none for them; the layer's clipped
weight gradient is formed once, afterwards, from what was saved.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from client.clip_rule import ClipRule
from client.clipped_sum import ClippingEngine, LossFunction, Total, not_reached
from client.layer_gradients import (
    GramCache,
    LayerGradient,
    RowGradient,
    Selection,
    UnitGradient,
    UnitLayout,
    layer_norm_gradients,
    linear_gradients,
)
from client.sampling import PhysicalBatch
from common.errors import ModelError

# A layer, its inputs and the gradient of its output give the gradient of each parameter for each window.
GradSampler = Callable[[nn.Module, list[Tensor], Tensor], Mapping[Tensor, Tensor]]


class BookkeepingEngine(ClippingEngine):
    """The fast engine: close to the time of a step without privacy.

    Args:
        rule: How to clip.
        dtype: What the model computes in.
        sampler: The reference's per-window gradients, for layers that have no form of their own here and
            for parameters that several layers share.
    """

    name = "bookkeeping"

    def __init__(self, rule: ClipRule, *, dtype: torch.dtype = torch.float32, sampler: GradSampler) -> None:
        """Keep the rule and the sampler."""
        super().__init__(rule, dtype=dtype)
        self._sampler = sampler

    def _add_units(self, model: nn.Module, batch: PhysicalBatch, loss_fn: LossFunction, total: Total) -> None:
        """Run one pass, measure, clip and add."""
        layout = UnitLayout.of(batch.units)
        tape = _Tape(model, total=total, layout=layout, num_windows=batch.num_windows)
        with tape.recording():
            self._loss(model, batch.take(layout.order), loss_fn).backward()  # type: ignore[no-untyped-call]
        tape.measure_rest(self._sampler)
        factors = total.factors(tape.squared_norms(), numbers=layout.numbers, num_units=batch.num_units)
        tape.add_clipped(factors)


@dataclass(kw_only=True, eq=False)
class _Calls:
    """What was saved of one layer during a pass: an entry for each time it was called."""

    name: str
    module: nn.Module
    inputs: list[list[Tensor]] = field(default_factory=list)
    versions: list[list[int]] = field(default_factory=list)
    gradients: dict[int, Tensor] = field(default_factory=dict)
    measured: bool = False

    def pairs(self) -> list[tuple[list[Tensor], Tensor]]:
        """Return inputs and output gradient of each call that the loss depends on, and forget them."""
        for saved, versions in zip(self.inputs, self.versions, strict=True):
            if [tensor._version for tensor in saved] != versions:
                raise ModelError(
                    f"The input of layer {self.name} was changed in place after the layer used it, so its "
                    "gradient cannot be measured. Use a model without in-place operations there."
                )
        found = [(self.inputs[call], gradient) for call, gradient in sorted(self.gradients.items())]
        self.inputs, self.gradients, self.measured = [], {}, True
        return found


class _Tape:
    """Records one forward and backward pass over sorted windows; gives norms, then the clipped sum."""

    def __init__(self, model: nn.Module, *, total: Total, layout: UnitLayout, num_windows: int) -> None:
        """Note the layers with trained parameters; record nothing yet."""
        self._total = total
        self._layout = layout
        self._num_windows = num_windows
        self._trained = set(total.parameters.values())
        self._shared = _shared_parameters(model)
        self._calls = [
            _Calls(name=name, module=module)
            for name, module in model.named_modules()
            if any(parameter in self._trained for parameter in module.parameters(recurse=False))
        ]
        self._cache = GramCache()
        self._found: list[tuple[int, LayerGradient]] = []

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record the one forward and backward pass that runs inside."""
        handles = [calls.module.register_forward_hook(self._saver(calls)) for calls in self._calls]
        for parameter in self._trained:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in self._trained:
                parameter.requires_grad_(True)
            for handle in handles:
                handle.remove()

    def measure_rest(self, sampler: GradSampler) -> None:
        """Measure the layers that had to wait for the end of the pass.

        Raises:
            ModelError: The loss does not depend on a trained layer.
        """
        built: dict[Tensor, Tensor] = {}
        for calls in self._calls:
            if calls.measured:
                continue
            if not calls.gradients:
                raise not_reached(calls.name)
            if self._has_own_form(calls.module):
                self._measure(calls)
                continue
            for inputs, gradient in calls.pairs():
                for parameter, sampled in sampler(calls.module, inputs, gradient).items():
                    if parameter in self._trained:
                        summed = self._layout.sum(sampled.float())
                        built[parameter] = built[parameter] + summed if parameter in built else summed
        units = slice(0, self._layout.num_units)
        for parameter, gradients in built.items():
            self._keep(parameter, [UnitGradient(parameter, gradients, units)])

    def squared_norms(self) -> Tensor:
        """Return `(groups, units)` float32."""
        device = self._layout.owner.device
        squared = torch.zeros(self._total.num_groups, self._layout.num_units, device=device)
        for group, gradient in self._found:
            squared[group, gradient.units] += gradient.squared_norms
        return squared

    def add_clipped(self, factors: Tensor) -> None:
        """Add the clipped sum, given `(groups, units)` factors."""
        selections = [Selection(row, row > 0.0, self._layout) for row in factors]
        while self._found:
            # Each layer's tensors are let go as soon as they are used, to keep the peak down.
            group, gradient = self._found.pop(0)
            gradient.add_clipped(selections[group], self._total.sums)

    def _saver(self, calls: _Calls) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        """Return the forward hook of one layer."""

        def save(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            """Keep the inputs and ask for the output's gradient."""
            if not isinstance(output, Tensor) or output.shape[:1] != (self._num_windows,):
                raise ModelError(
                    f"The output of layer {calls.name} does not have one row for each window, so the "
                    "gradients of units cannot be told apart. Freeze the layer or use another model."
                )
            call = len(calls.inputs)
            saved = [tensor.detach() for tensor in inputs]
            calls.inputs.append(saved)
            calls.versions.append([tensor._version for tensor in saved])
            # With frozen parameters below, this layer's output is where the graph begins.
            changed = None if output.requires_grad else output.requires_grad_().clone()
            arrived = functools.partial(self._arrived, calls, call)
            (output if changed is None else changed).register_hook(arrived)  # type: ignore[no-untyped-call]
            return changed

        return save

    def _arrived(self, calls: _Calls, call: int, gradient: Tensor) -> Tensor:
        """Keep an output gradient; measure the layer once all of its calls are back."""
        # Autograd goes on with the same copy, where the gradient has to be copied to lie in order.
        gradient = gradient.contiguous()
        calls.gradients[call] = gradient.detach()
        if len(calls.gradients) == len(calls.inputs) and self._has_own_form(calls.module):
            self._measure(calls)
        return gradient

    def _has_own_form(self, module: nn.Module) -> bool:
        """Return whether the layer is measured here rather than by the reference's sampler."""
        if type(module) not in (nn.Linear, nn.LayerNorm, nn.Embedding):
            return False
        return not any(parameter in self._shared for parameter in module.parameters(recurse=False))

    def _measure(self, calls: _Calls) -> None:
        """Turn what was saved of a layer into its gradient."""
        module, pairs = calls.module, calls.pairs()
        ends = len(module.normalized_shape) if isinstance(module, nn.LayerNorm) else 1
        starts = 0 if isinstance(module, nn.Embedding) else ends
        # A layer that is called twice has twice as many tokens.
        inputs = _joined([_tokens(saved[0], starts) for saved, _ in pairs])
        gradients = _joined([_tokens(gradient, ends) for _, gradient in pairs])
        layout, trained = self._layout, self._trained
        found: list[LayerGradient]
        if isinstance(module, nn.Linear):
            found = linear_gradients(
                module, trained, inputs=inputs, gradients=gradients, layout=layout, cache=self._cache
            )
        elif isinstance(module, nn.LayerNorm):
            found = layer_norm_gradients(module, trained, inputs=inputs, gradients=gradients, layout=layout)
        elif isinstance(module, nn.Embedding):
            found = [RowGradient(module, inputs, gradients, layout)]
        # All parameters of a layer that is not shared lie in one group.
        owned = next(parameter for parameter in module.parameters(recurse=False) if parameter in trained)
        self._keep(owned, found)

    def _keep(self, parameter: Tensor, gradients: list[LayerGradient]) -> None:
        """Add gradients to the group that `parameter` is clipped in."""
        group = self._total.group_of[parameter]
        self._found.extend((group, gradient) for gradient in gradients)


def _tokens(tensor: Tensor, ends: int) -> Tensor:
    """Return `(windows, ..., *features)` as `(windows, tokens, *features)`, with `ends` axes of features."""
    shape = tensor.shape[tensor.dim() - ends :]
    return tensor.reshape(tensor.shape[0], -1, *shape).contiguous()


def _joined(calls: list[Tensor]) -> Tensor:
    """Return the calls' tokens one after the other, without a copy where there is one call."""
    return calls[0] if len(calls) == 1 else torch.cat(calls, dim=1)


def _shared_parameters(model: nn.Module) -> set[Tensor]:
    """Return the parameters that more than one module, or one module twice, holds."""
    seen: set[Tensor] = set()
    shared: set[Tensor] = set()
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                (shared if parameter in seen else seen).add(parameter)
    return shared
