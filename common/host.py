"""What the sites of one process share: the model on its device, the tokenizer and the trainers.

A real site has a host of its own; a simulation lets a hundred sites take turns on one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from common.labels import LabelSchema
from common.model import build_model, encoder_source, is_local, resolve_device
from common.parameters import ParameterLayout, layout_of, read_vector, write_vector
from common.plan import Plan
from common.prediction import Encoding
from common.tokenization import load_tokenizer
from common.word_features import WordFeatures


@dataclass(frozen=True, kw_only=True)
class ModelHost:
    """A built model with everything needed to feed it.

    Attributes:
        model: The classifier on its device; its weights belong to whoever holds `lock`.
        encoding: How notes become windows.
        layout: Names and shapes of the trained parameters.
        lock: Held while the model's weights are in use.
    """

    model: nn.Module = field(repr=False)
    encoding: Encoding
    layout: ParameterLayout = field(repr=False)
    lock: Any = field(default_factory=RLock, repr=False)

    @classmethod
    def build(cls, plan: Plan, *, device: str = "auto") -> ModelHost:
        """Build the plan's model on a device.

        Raises:
            ModelError: The encoder or the device cannot be used.
        """
        encoding = build_encoding(plan)
        model = build_model(plan.model, encoding.schema.tags, seed=plan.seed, features=plan.features)
        layout = layout_of(model)
        return cls(model=model.to(resolve_device(device)), encoding=encoding, layout=layout)

    def read(self) -> NDArray[np.float32]:
        """Copy the trained parameters into a vector, `(parameters,)`."""
        return read_vector(self.model)

    def write(self, vector: NDArray[np.float32]) -> None:
        """Copy a vector, `(parameters,)`, into the trained parameters."""
        write_vector(self.model, vector)


def schema_of(plan: Plan) -> LabelSchema:
    """Return the label schema that a plan declares."""
    return LabelSchema(entity_types=plan.task.entity_types, mapping=dict(plan.task.label_map))


def build_encoding(plan: Plan) -> Encoding:
    """Return how a plan turns notes into windows."""
    source = encoder_source(plan.model.encoder)
    return Encoding(
        tokenizer=load_tokenizer(source, local_files_only=is_local(source)),
        schema=schema_of(plan),
        max_tokens=plan.model.max_tokens,
        stride=plan.model.stride,
        features=None if plan.features is None else WordFeatures.open(plan.features),
    )
