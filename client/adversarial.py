"""Adversarial training on word embeddings: FGM, PGD and FreeLB, each window perturbed on its own.

The loss is the mean over *copies* of a window: clean and perturbed for `fgm` (Miyato et al., ICLR 2017) and
`pgd` (Madry et al., ICLR 2018), the perturbed ones of all ascent steps for `freelb` (Zhu et al., ICLR 2020,
algorithm 1). Norms are taken over one window's pieces together, never over a batch.

Without privacy the gradients of parameters and perturbation come from the same passes. Under privacy the
perturbations are found first; then the copies go through the clipping engine as windows of their unit, which
is clipped once, afterwards. Adapter module (torch).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from client.clipped_sum import token_loss
from client.sampling import PhysicalBatch
from common.embeddings import embedding_shape, shifted_embeddings
from common.errors import ModelError
from common.plan_augmentation import Adversarial

_TINY = 1e-12
_PROBE_TOKENS = 4


@dataclass(frozen=True, kw_only=True)
class PlainAdversary:
    """Forms the gradient of one batch without privacy, in the parameters' `.grad`.

    Attributes:
        section: The plan's `[adversarial]`.
    """

    section: Adversarial

    def backward(self, model: nn.Module, mask: Tensor, loss: Callable[[], Tensor]) -> Tensor:
        """Add the gradient of the mean loss over the copies to `.grad`; return the first copy's loss.

        Args:
            model: The classifier.
            mask: `(windows, tokens)`, 1 on pieces.
            loss: Runs the model once and returns a scalar.
        """
        section, share = self.section, 1.0 / self.section.copies
        offsets = _start(section, model, mask)
        first, gradient = _pass(model, offsets, loss, share)
        if section.method == "freelb":
            for _ in range(section.ascent_steps - 1):
                offsets = climb(section, offsets, gradient)
                _, gradient = _pass(model, offsets, loss, share)
            return first
        offsets = climb(section, offsets, gradient)
        for _ in range(_further_steps(section)):
            offsets = climb(section, offsets, _slope(model, offsets, loss))
        _pass(model, offsets, loss, share)
        return first


@dataclass(frozen=True, kw_only=True)
class UnitAdversary:
    """Puts perturbed copies of windows beside them, before a clipping engine sums and clips.

    Formal guarantees: The perturbation of a window is a function of that window, of the model and of
    randomness that no other unit touches: the gradient of the sum of losses with respect to one window's
    embeddings is that window's own, norms are taken within a window, and a start at random depends on the
    window's own length. The copies carry the window's unit, so the gradient that is clipped is a function of
    one unit alone, and the sum's sensitivity is the engine's.

    Attributes:
        section: The plan's `[adversarial]`.
        dtype: What the model computes in.
    """

    section: Adversarial
    dtype: torch.dtype = torch.float32

    def batches(self, model: nn.Module, batches: Iterable[PhysicalBatch]) -> Iterator[PhysicalBatch]:
        """Yield each batch with its copies; run it inside `secret_dropout`, which `freelb` draws from."""
        for batch in batches:
            yield self.copies(model, batch)

    def copies(self, model: nn.Module, batch: PhysicalBatch) -> PhysicalBatch:
        """Return the batch with each window as often as the plan says, weights divided accordingly."""
        offsets = self.offsets(model, batch)
        rows = torch.arange(batch.num_windows, device=batch.units.device).repeat(len(offsets))
        repeated = batch.take(rows)
        return replace(repeated, weights=repeated.weights / len(offsets), offsets=torch.cat(offsets))

    def offsets(self, model: nn.Module, batch: PhysicalBatch, *, start: Tensor | None = None) -> list[Tensor]:
        """Return the perturbation of each copy, `(windows, tokens, hidden)` float32 each.

        Args:
            model: The classifier; its `.grad` fields are neither read nor changed.
            batch: The windows.
            start: Where the ascent begins; the method's own start by default.
        """
        section = self.section

        def loss() -> Tensor:
            """Sum the windows' losses: the gradient by one window's embeddings is that window's."""
            with self._autocast(batch):
                return token_loss(model, batch).sum()

        offsets = _start(section, model, batch.attention_mask) if start is None else start
        found = [offsets]
        if section.method == "freelb":
            for _ in range(section.ascent_steps - 1):
                found.append(climb(section, found[-1], _slope(model, found[-1], loss)))
            return found
        for _ in range(1 + _further_steps(section)):
            offsets = climb(section, offsets, _slope(model, offsets, loss))
        return [*found, offsets]

    def check(self, model: nn.Module, *, pad_id: int) -> None:
        """Refuse a model under which a window's perturbation depends on the windows beside it.

        Raises:
            ModelError: It does, or the model does not name its word embeddings.
        """
        words = min(_PROBE_TOKENS * 2, embedding_shape(model)[0])
        device = next(model.parameters()).device
        pair = _probe(words, pad_id).to(device)
        with _evaluating(model):
            together = self.offsets(model, pair, start=_zeros(model, pair.attention_mask))[-1]
            alone = pair.take(torch.zeros(1, dtype=torch.int64, device=device))
            single = self.offsets(model, alone, start=_zeros(model, alone.attention_mask))[-1]
        if not torch.allclose(together[:1], single, rtol=1e-2, atol=1e-4 * self.section.radius):
            raise ModelError(
                "The perturbation of a window depends on the other windows of its batch, which would void the "
                "privacy guarantee; use a model that does not mix windows, or leave out [adversarial]."
            )

    def _autocast(self, batch: PhysicalBatch) -> torch.autocast:
        device = batch.input_ids.device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def climb(section: Adversarial, offsets: Tensor, gradient: Tensor) -> Tensor:
    """Return the offsets after one ascent step, each window's within the radius.

    Args:
        section: The plan's `[adversarial]`.
        offsets: `(windows, tokens, hidden)`.
        gradient: Of the loss by the offsets, of the same shape; 0 where there is padding.
    """
    length = section.radius if section.method == "fgm" else section.ascent_rate
    moved = offsets + length * (gradient / _norms(gradient).clamp_min(_TINY))
    factors: Tensor = (section.radius / _norms(moved).clamp_min(_TINY)).clamp(max=1.0)
    return moved * factors


def _norms(values: Tensor) -> Tensor:
    """Return the L2 norm of each window, `(windows, 1, 1)`."""
    norms: Tensor = torch.linalg.vector_norm(values, dim=(1, 2), keepdim=True)
    return norms


def _further_steps(section: Adversarial) -> int:
    """Return the ascent steps after the first one, without those of FreeLB."""
    return section.ascent_steps - 1 if section.method == "pgd" else 0


def _zeros(model: nn.Module, mask: Tensor) -> Tensor:
    """Return offsets of nothing, `(windows, tokens, hidden)` float32."""
    return torch.zeros(*mask.shape, embedding_shape(model)[1], device=mask.device)


def _start(section: Adversarial, model: nn.Module, mask: Tensor) -> Tensor:
    """Return where the ascent begins: at nothing, or for FreeLB somewhere in a ball of the radius."""
    offsets = _zeros(model, mask)
    if section.method != "freelb":
        return offsets
    # Zhu et al. 2020, algorithm 1, line 4: uniform on [-radius, radius] over the root of the number of values.
    values = mask.sum(dim=1, keepdim=True).unsqueeze(2) * offsets.shape[2]
    drawn = (2.0 * torch.rand_like(offsets) - 1.0) * section.radius / values.clamp_min(1).sqrt()
    return drawn * mask.unsqueeze(2)


def _pass(
    model: nn.Module, offsets: Tensor, loss: Callable[[], Tensor], share: float
) -> tuple[Tensor, Tensor]:
    """Run once; add a share of the gradient to `.grad`, and return the loss and the offsets' gradient."""
    leaf = offsets.detach().requires_grad_()
    with shifted_embeddings(model, leaf):
        value = loss()
    (value * share).backward()  # type: ignore[no-untyped-call]
    return value.detach(), _gradient_of(leaf.grad)


def _slope(model: nn.Module, offsets: Tensor, loss: Callable[[], Tensor]) -> Tensor:
    """Run once and return the offsets' gradient alone."""
    leaf = offsets.detach().requires_grad_()
    with shifted_embeddings(model, leaf):
        (gradient,) = torch.autograd.grad(loss(), [leaf], allow_unused=True)
    return _gradient_of(gradient)


def _gradient_of(gradient: Tensor | None) -> Tensor:
    """Return a gradient that is there.

    Raises:
        ModelError: The loss does not depend on the word embeddings.
    """
    if gradient is None:
        raise ModelError(
            "The loss does not depend on the layer that the model names as its word embeddings, so there is "
            "nothing to perturb; leave out [adversarial]."
        )
    return gradient.float()


def _probe(words: int, pad_id: int) -> PhysicalBatch:
    """Return two made-up windows of different pieces."""
    ids = (torch.arange(2 * _PROBE_TOKENS) % words).view(2, _PROBE_TOKENS)
    ids = torch.where(ids == pad_id, (ids + 1) % words, ids)
    return PhysicalBatch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        labels=torch.zeros_like(ids),
        units=torch.arange(2),
        weights=torch.ones(2),
        num_units=2,
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout off inside."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
