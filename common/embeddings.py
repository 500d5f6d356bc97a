"""Adding to the word embeddings of one forward pass, for adversarial training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn

from common.errors import ModelError


def word_embeddings(model: nn.Module) -> nn.Module:
    """Return the layer that looks word pieces up.

    Raises:
        ModelError: The model does not say which layer that is.
    """
    try:
        layer = cast(Any, model).get_input_embeddings()
    except (AttributeError, NotImplementedError):
        layer = None
    if not isinstance(layer, nn.Module) or not hasattr(layer, "weight"):
        raise ModelError(
            "The model does not name its word embeddings, which adversarial training perturbs; use another encoder, "
            "or leave out [adversarial]."
        )
    return layer


def embedding_shape(model: nn.Module) -> tuple[int, int]:
    """Return how many pieces the model knows, and the width of their embeddings.

    Raises:
        ModelError: The model does not say which layer that is.
    """
    pieces, hidden = cast(Tensor, word_embeddings(model).weight).shape
    return int(pieces), int(hidden)


@contextmanager
def shifted_embeddings(model: nn.Module, offsets: Tensor | None) -> Iterator[None]:
    """Add `offsets`, `(windows, tokens, hidden)`, to the word embeddings of the passes inside; None adds nothing.

    The layer's own output, and so its gradient, stays as it is: hooks that were there before see it unshifted.
    """
    if offsets is None:
        yield
        return
    handle = word_embeddings(model).register_forward_hook(lambda _module, _args, output: output + offsets)
    try:
        yield
    finally:
        handle.remove()
