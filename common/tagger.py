"""Opening a trained model for use: at the server for evaluation, at a site as a recogniser."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from common.errors import InputError, ModelError, ValidationError
from common.feature_head import saved_features
from common.labels import LabelSchema
from common.model import load_model, model_tags
from common.prediction import Encoding
from common.tokenization import load_tokenizer
from common.word_features import WordFeatures

_MAX_TOKENS = 256
_STRIDE = 64


def open_tagger(folder: Path, label_map: Iterable[str] = ()) -> tuple[nn.Module, Encoding]:
    """Open a saved model with what feeds it; the label schema is read from the model's own tags.

    Args:
        folder: A plain Hugging Face folder, with a feature head beside it or without.
        label_map: `source=type` pairs for gold data with other labels.

    Raises:
        ModelError: The folder is not a token classifier with IOB2 tags.
    """
    model = load_model(folder)
    types = dict.fromkeys(tag[2:] for tag in model_tags(model) if tag.startswith("B-"))
    try:
        schema = LabelSchema(entity_types=tuple(types), mapping=_parse_map(label_map))
    except ValidationError as error:
        raise ModelError(f"{folder}: {error}") from None
    if schema.tags != model_tags(model):
        raise ModelError(
            f"{folder} has the tags {', '.join(model_tags(model))}, which are not IOB2 in fedward's order."
        )
    tokenizer = load_tokenizer(folder, local_files_only=True)
    positions = int(getattr(model.config, "max_position_embeddings", _MAX_TOKENS))
    max_tokens = min(_MAX_TOKENS, positions)
    features = saved_features(folder)
    return model, Encoding(
        tokenizer=tokenizer,
        schema=schema,
        max_tokens=max_tokens,
        stride=min(_STRIDE, max_tokens // 4),
        features=None if features is None else WordFeatures.open(features),
    )


def _parse_map(pairs: Iterable[str]) -> dict[str, str]:
    mapping = {}
    for pair in pairs:
        source, equals, target = pair.partition("=")
        if not equals or not source:
            raise InputError(f"--map {pair!r} is not of the form SOURCE=TYPE.")
        mapping[source] = target
    return mapping
