"""How a site gets from a round's model to a finished update in its spool: the strategy, and the plain one.

`client.private_round` is the strategy of private plans. A strategy decides what an update holds and what
the reply to `train` carries besides; `Site` itself knows nothing of either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from client.augmentation import Augmenter, EpochViews
from client.spool import UpdateSpool
from client.trainer import LocalTrainer
from common.errors import DataError
from common.host import ModelHost
from common.messages import Scalar
from common.plan import Plan
from common.records import Example, ModelUpdate, Note
from common.secure_plan import clip_counts
from common.stages import DELTA
from common.training import Progress, TrainingResult, Windows

OnStep = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class RoundTask:
    """One round as a site was asked for it, after its checks.

    Attributes:
        run_id: fedward's run id.
        server_round: From 1.
        attempt: The attempt at secure aggregation, 0 without it.
        model_hash: Hash of the model that the round starts from.
        model: Returns that model, `(parameters,)` float32, or raises if the request did not bring it.
        ledger_head: What the server last saw of this site's privacy ledger, "" where it sends nothing.
    """

    run_id: str
    server_round: int
    attempt: int
    model_hash: str
    model: Callable[[], NDArray[np.float32]] = field(repr=False)
    ledger_head: str = ""


class RoundTraining(Protocol):
    """Finishes rounds."""

    def finish(self, task: RoundTask, spool: UpdateSpool) -> Mapping[str, Scalar]:
        """See that the round's finished update is in the spool; return what the reply carries for it.

        Raises:
            FedwardError: The site does not train; nothing of its records was used, or nothing leaves.
        """


class SiteRecords:
    """A site's training records, encoded once and kept until `forget`.

    Args:
        notes: The records.
        host: Knows how notes become windows.
        unit: The privacy unit whose id the windows carry.
    """

    def __init__(self, notes: Sequence[Note], host: ModelHost, *, unit: str = "record") -> None:
        self._notes = notes
        self._host = host
        self._unit = unit
        self._examples: list[Example] | None = None

    @property
    def notes(self) -> Sequence[Note]:
        """The records themselves."""
        return self._notes

    def examples(self) -> list[Example]:
        """Return the training windows.

        Raises:
            DataError: A note lacks the id of the unit.
        """
        if self._examples is None:
            self._examples = self._host.encoding.examples(self._notes, unit=self._unit)
        return self._examples

    def fingerprint(self) -> str:
        """Return a SHA-256 of the records, as evidence of what was trained on."""
        digest = hashlib.sha256(b"fedward records v1")
        for note in self._notes:
            digest.update(repr((note.note_id, note.text, note.spans)).encode())
        return digest.hexdigest()

    def forget(self) -> None:
        """Let the encoded records go."""
        self._examples = None


class PlainTraining:
    """Trains without privacy; counts and the mean loss ride along with the delta.

    Args:
        name: The site's name.
        plan: The agreed plan.
        weight: The site's public weight.
        sites: Members of the roster.
        host: The model.
        records: What is trained on.
        on_step: Called after each optimizer step.
    """

    def __init__(
        self,
        *,
        name: str,
        plan: Plan,
        weight: float,
        sites: int,
        host: ModelHost,
        records: SiteRecords,
        on_step: OnStep | None = None,
    ) -> None:
        self.name = name
        self.plan = plan
        self.weight = weight
        self.sites = sites
        self.host = host
        self.records = records
        self.on_step = on_step
        self.augmenter = Augmenter.of(plan, records.notes)

    def finish(self, task: RoundTask, spool: UpdateSpool) -> Mapping[str, Scalar]:
        """Train unless the update is there."""
        if not spool.holds(server_round=task.server_round, model_hash=task.model_hash):
            update = self._fit(task.model(), task.server_round)
            spool.save(update, server_round=task.server_round, model_hash=task.model_hash)
        return {}

    def _fit(self, vector: NDArray[np.float32], server_round: int) -> ModelUpdate:
        """Train the shared model from `vector` and return the change."""
        examples = self._windows(server_round)
        with self.host.lock:
            self.host.write(vector)
            trainer = LocalTrainer(self.host.model, self.plan, pad_id=self.host.encoding.pad_id)
            result = trainer.train(examples, site=self.name, server_round=server_round, on_step=self.on_step)
            delta = self.host.read()
            # In place: the model is large, and there is no need for a third copy of it.
            delta -= vector
        return ModelUpdate(fields=self._fields(delta, result), weight=self.weight)

    def _windows(self, server_round: int) -> Windows:
        """Return what a round trains on: the records' windows, or views of the records for each epoch."""
        examples = self.records.examples()
        if not examples:
            raise DataError(f"Site {self.name} has no training examples; give it records or leave it out.")
        if self.augmenter is None:
            return examples
        return EpochViews(
            augmenter=self.augmenter,
            notes=self.records.notes,
            windows=examples,
            encoding=self.host.encoding,
            seed=self.plan.seed,
            names=(self.name, server_round),
        )

    def _fields(self, delta: NDArray[np.float32], result: TrainingResult) -> dict[str, NDArray[np.float32]]:
        """Return what an update holds: the change, the mean loss and counts."""
        section = self.plan.secure_aggregation
        clipped = int(np.count_nonzero(np.abs(delta) * np.float32(self.weight) > section.clip))
        counts = {
            "num_examples": result.num_examples,
            "num_tokens": result.num_tokens,
            "num_clipped": clipped if section.enabled else 0,
        }
        loss = result.loss_sum / max(result.num_tokens, 1)
        return {
            DELTA: delta,
            "train_loss": np.array([loss], dtype=np.float32),
            **{
                name: clip_counts(np.array([value], dtype=np.float32), sites=self.sites)
                for name, value in counts.items()
            },
        }
