"""How one unit's gradient is scaled before it is summed, and what that makes the sum's sensitivity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.errors import ValidationError
from common.validation import require_choice, require_float, require_known_keys

CLIP_MODES = ("auto", "flat", "per_layer")
# Opacus divides by the norm plus this number; we keep it so that both give the same sum.
_STABILISER = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipRule:
    """The plan's clipping rule.

    Formal guarantees: In exact arithmetic, the scaled gradient of every unit has an L2 norm of at most
    `max_grad_norm`, in every mode, whatever the unit's gradient is; so the sum over units changes by at most
    `max_grad_norm` when one unit is added or removed. A unit whose norm is not finite is scaled to zero.

    * `flat`: factor `min(1, C / norm)` (Abadi et al. 2016).
    * `auto`: factor `C / (norm + gamma)`, normalisation in place of a threshold (Bu et al., "Automatic
      Clipping", NeurIPS 2023, algorithm 1); its norm stays below C.
    * `per_layer`: each layer is clipped on its own to `C w_l / sqrt(sum of w^2)`, so that the root of the
      sum of the squared bounds is C again.

    Attributes:
        mode: One of `flat`, `auto`, `per_layer`.
        max_grad_norm: The bound C, above 0.
        gamma: The stabiliser of `auto`, above 0.
        layer_weights: Relative bounds w of layers by module name for `per_layer`; 1 where not given.
    """

    mode: str = "flat"
    max_grad_norm: float = 1.0
    gamma: float = 0.01
    layer_weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the values."""
        require_choice("mode", self.mode, CLIP_MODES)
        require_float("max_grad_norm", self.max_grad_norm, minimum=0.0, maximum=1e6, open_minimum=True)
        require_float("gamma", self.gamma, minimum=0.0, maximum=1e6, open_minimum=True)
        if self.layer_weights and self.mode != "per_layer":
            raise ValidationError(
                f"layer_weights is given but mode is {self.mode!r}; only per_layer uses it."
            )
        for name, weight in self.layer_weights.items():
            require_float(f"layer_weights.{name}", weight, minimum=0.0, maximum=1e6, open_minimum=True)

    def groups(self, layers: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the groups of layers that are clipped together.

        Raises:
            ValidationError: `layer_weights` names a layer that the model does not train.
        """
        if self.mode != "per_layer":
            return ("",)
        require_known_keys("layer_weights", self.layer_weights, layers)
        return tuple(layers)

    def bounds(self, groups: Sequence[str]) -> Tensor:
        """Return each group's bound, `(groups,)` float32; their root of squares is `max_grad_norm`."""
        weights = [self.layer_weights.get(group, 1.0) for group in groups]
        scale = self.max_grad_norm / math.sqrt(sum(weight * weight for weight in weights))
        return torch.tensor([scale * weight for weight in weights], dtype=torch.float32)

    def factors(self, squared_norms: Tensor, groups: Sequence[str]) -> Tensor:
        """Return what each unit's gradient is multiplied by, group by group.

        Args:
            squared_norms: `(groups, units)` float32 squared L2 norms, not negative or not finite.
            groups: The groups' names.

        Returns:
            `(groups, units)` float32 factors; 0 in every group for a unit that is not finite in one.
        """
        norms = squared_norms.sqrt()
        bounds = self.bounds(groups).to(norms.device).unsqueeze(1)
        if self.mode == "auto":
            factors = bounds / (norms + self.gamma)
        else:
            factors = (bounds / (norms + _STABILISER)).clamp(max=1.0)
        return factors.masked_fill(~torch.isfinite(squared_norms).all(dim=0), 0.0)
