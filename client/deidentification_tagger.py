"""A trained token classifier as one more Presidio recogniser: a PHI tagger is a model of one more plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from presidio_analyzer import LocalRecognizer, RecognizerResult
from torch import nn

from client.deidentification_recognizers import LANGUAGE
from common.errors import ValidationError
from common.model import resolve_device
from common.prediction import Encoding, predict_spans
from common.records import Note
from common.tagger import open_tagger

SCORE = 0.7
"""How sure a tagger counts: surer than a shape, less sure than a label."""


class TaggerRecognizer(LocalRecognizer):
    """Reports what a trained model tags.

    Args:
        model: The classifier, on its device.
        encoding: Feeds it.
        kinds: The model's label to PHI type; a label that maps to "" is not reported, one that is not there is a
            PHI type itself.
    """

    def __init__(self, model: nn.Module, encoding: Encoding, kinds: Mapping[str, str] | None = None) -> None:
        self._model, self._encoding = model, encoding
        labels = encoding.schema.entity_types
        for label in kinds or {}:
            if label not in labels:
                raise ValidationError(
                    f"deidentification.tagger_map names {label!r}, which the tagger has not; its labels are "
                    f"{', '.join(labels)}."
                )
        self._kinds = {label: (kinds or {}).get(label, label) for label in labels}
        super().__init__(
            supported_entities=sorted({kind for kind in self._kinds.values() if kind}),
            name="tagger",
            supported_language=LANGUAGE,
        )

    @classmethod
    def open(
        cls, folder: Path, *, device: str = "auto", kinds: Mapping[str, str] | None = None
    ) -> TaggerRecognizer:
        """Open a saved model.

        Raises:
            ModelError: The folder is no token classifier with IOB2 tags, or the device cannot be used.
            ValidationError: `kinds` names a label that the model has not.
        """
        model, encoding = open_tagger(folder)
        return cls(model.to(resolve_device(device)), encoding, kinds)

    def load(self) -> None:
        """The model is loaded already."""

    def analyze(
        self, text: str, entities: Sequence[str], nlp_artifacts: Any = None
    ) -> list[RecognizerResult]:
        """Return the tagged spans of a text."""
        ((_, spans),) = predict_spans(self._model, [Note(note_id="text", text=text)], self._encoding)
        return [
            RecognizerResult(entity_type=self._kinds[span.label], start=span.start, end=span.end, score=SCORE)
            for span in spans
            if self._kinds[span.label]
        ]
