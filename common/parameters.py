"""Named tensors <-> one flat float32 vector, in a fixed order that both ends agree on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from common.errors import DecodeError


@dataclass(frozen=True, kw_only=True)
class ParameterLayout:
    """The names and shapes of the trained parameters, in the order of the flat vector.

    Attributes:
        names: Parameter names, in the model's own order.
        shapes: The shape of each.
        frozen_sha256: Digest of everything that is not trained, so that two ends with different encoders notice.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    frozen_sha256: str = field(default="")

    @property
    def size(self) -> int:
        """Number of trained parameters."""
        return sum(int(np.prod(shape)) for shape in self.shapes)

    @property
    def hash(self) -> str:
        """SHA-256 of names, shapes and the frozen part, in hexadecimal."""
        text = repr((self.names, self.shapes, self.frozen_sha256))
        return hashlib.sha256(text.encode()).hexdigest()


def layout_of(model: nn.Module) -> ParameterLayout:
    """Describe the trained parameters of a model."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return ParameterLayout(
        names=tuple(name for name, _ in trained),
        shapes=tuple(tuple(p.shape) for _, p in trained),
        frozen_sha256=digest.hexdigest(),
    )


def read_vector(model: nn.Module) -> NDArray[np.float32]:
    """Copy the trained parameters into a flat float32 vector, `(parameters,)`."""
    parts = [p.detach().reshape(-1).to("cpu", torch.float32) for p in model.parameters() if p.requires_grad]
    return torch.cat(parts).numpy() if parts else np.zeros(0, dtype=np.float32)


def write_vector(model: nn.Module, vector: NDArray[np.float32]) -> None:
    """Copy a flat float32 vector, `(parameters,)`, into the trained parameters.

    Raises:
        DecodeError: The vector's length is not the model's, or a number in it is not finite.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    expected = sum(p.numel() for p in trained)
    if vector.shape != (expected,):
        raise DecodeError(
            f"A model vector has shape {vector.shape}; this model has {expected} trained parameters."
        )
    if not np.isfinite(vector).all():
        raise DecodeError(
            "A model vector holds numbers that are not finite; training has diverged where it was made."
        )
    source = torch.from_numpy(np.ascontiguousarray(vector, dtype=np.float32))
    offset = 0
    with torch.no_grad():
        for parameter in trained:
            piece = source[offset : offset + parameter.numel()]
            parameter.copy_(piece.view(parameter.shape))
            offset += parameter.numel()


def vector_hash(vector: NDArray[np.float32]) -> str:
    """SHA-256 of a vector's little-endian bytes, in hexadecimal: the *model hash* of a round."""
    return hashlib.sha256(np.ascontiguousarray(vector, dtype="<f4").tobytes()).hexdigest()


def concatenate(fields: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """Join named vectors into one, in the order of the mapping."""
    return np.concatenate([np.asarray(values, dtype=np.float32).reshape(-1) for values in fields.values()])
