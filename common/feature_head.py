"""A token classifier whose head also sees word features: an embedding for each kind, into the same logits.

Giving the head the encoder's output and the embedded features side by side is adding what a second, narrow head
makes of the features alone; so the encoder and its head stay a plain Hugging Face model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.modeling_outputs import TokenClassifierOutput

from common.errors import ModelError, ValidationError
from common.files import write_atomically
from common.plan_augmentation import Features
from common.word_features import feature_sizes

SETTINGS = "fedward_features.json"
WEIGHTS = "fedward_features.safetensors"


class FeatureHead(nn.Module):
    """Embeds each kind of feature and turns them into logits.

    Args:
        section: The plan's `[features]`.
        num_tags: Width of the logits.
    """

    def __init__(self, section: Features, num_tags: int) -> None:
        super().__init__()
        sizes = feature_sizes(section)
        self.embeddings = nn.ModuleList(
            nn.Embedding(size, section.dimension, padding_idx=0) for size in sizes
        )
        self.projection = nn.Linear(section.dimension * len(sizes), num_tags, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, `(windows, tokens, tags)`, of features, `(windows, tokens, kinds)`."""
        columns = [layer(features[..., kind]) for kind, layer in enumerate(self.embeddings)]
        logits: Tensor = self.projection(torch.cat(columns, dim=-1))
        return logits


class FeatureTagger(nn.Module):
    """A Hugging Face token classifier and a feature head.

    Args:
        tagger: The classifier.
        section: The plan's `[features]`.
    """

    def __init__(self, tagger: nn.Module, section: Features) -> None:
        super().__init__()
        self.tagger = tagger
        self.section = section
        # The name marks it as a part of the head, for head_learning_rate and a warm-up of the head alone.
        self.feature_classifier = FeatureHead(section, int(cast(Any, tagger).config.num_labels))

    @property
    def config(self) -> Any:
        """The classifier's configuration."""
        return cast(Any, self.tagger).config

    def get_input_embeddings(self) -> nn.Module:
        """Return the classifier's word embeddings."""
        return cast(nn.Module, cast(Any, self.tagger).get_input_embeddings())

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, features: Tensor | None = None
    ) -> TokenClassifierOutput:
        """Return logits, `(windows, tokens, tags)`; without features, nothing is known of any word."""
        if features is None:
            shape = (*input_ids.shape, len(self.feature_classifier.embeddings))
            features = torch.zeros(shape, dtype=torch.int64, device=input_ids.device)
        logits = self.tagger(input_ids=input_ids, attention_mask=attention_mask).logits
        return TokenClassifierOutput(logits=logits + self.feature_classifier(features))


def save_head(model: FeatureTagger, folder: Path) -> None:
    """Write the feature head beside a saved classifier."""
    section = model.section
    table = {"shape": section.shape, "tagger": section.tagger, "dimension": section.dimension}
    weights = {name: value.detach().cpu() for name, value in model.feature_classifier.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    write_atomically(folder / SETTINGS, json.dumps(table, indent=2) + "\n")


def drop_head(folder: Path) -> None:
    """Remove the feature head of a model that was saved in a folder before."""
    for name in (SETTINGS, WEIGHTS):
        (folder / name).unlink(missing_ok=True)


def saved_features(folder: Path) -> Features | None:
    """Return the features that a saved model was trained with, or None.

    Raises:
        ModelError: The file that says so cannot be read.
    """
    path = folder / SETTINGS
    if not path.is_file():
        return None
    try:
        return Features.from_table(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        raise ModelError(f"{path} cannot be read as feature settings ({type(error).__name__}).") from error


def with_saved_head(tagger: nn.Module, folder: Path) -> nn.Module:
    """Return a loaded classifier with the feature head that was saved beside it, if one was.

    Raises:
        ModelError: The head does not fit.
    """
    section = saved_features(folder)
    if section is None:
        return tagger
    model = FeatureTagger(tagger, section)
    try:
        model.feature_classifier.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{folder / WEIGHTS} does not hold the feature head that {SETTINGS} describes "
            f"({type(error).__name__}); save the model again."
        ) from error
    return model
