"""One site: its records, its spool, and its answers to each stage of a round.

A site treats what arrives as if a malicious server had sent it: every request is held against the plan,
the roster and what the site has answered before. What it reports of a failure is a fixed code.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.spool import UpdateSpool
from client.trainer import LocalTrainer, Progress
from common.errors import DataError, FedwardError, RefusedError
from common.host import ModelHost
from common.messages import HELLO, TRAIN, UPLOAD, Envelope, refusal_of
from common.parameters import vector_hash
from common.plan import Plan
from common.records import Example, ModelUpdate, Note
from common.roster import Roster
from common.stages import DELTA, UpdateStage, Weighting, apply_stages

_log = logging.getLogger(__name__)


class Site:
    """A member of a federation, in one process.

    Args:
        name: The site's name in the roster.
        plan: The plan that the site has agreed to.
        roster: The members and their public weights.
        notes: The site's training records.
        host: The model that the site trains; may be shared with other sites of a simulation.
        spool: Folder for finished updates.
        on_step: Called after each optimizer step, for progress bars on the same machine.
    """

    def __init__(
        self,
        *,
        name: str,
        plan: Plan,
        roster: Roster,
        notes: Sequence[Note],
        host: ModelHost,
        spool: Path,
        on_step: Callable[[str, Progress], None] | None = None,
    ) -> None:
        self.name = name
        self.plan = plan
        self.weight = roster.weight(name)
        self.host = host
        self.spool_folder = spool
        self.stages: Sequence[UpdateStage] = (Weighting(),)
        self._notes = notes
        self._examples: list[Example] | None = None
        self._on_step = on_step
        self._round = 0
        self._handlers: dict[str, Callable[[Envelope], Envelope]] = {
            HELLO: self._hello,
            TRAIN: self._train,
            UPLOAD: self._upload,
        }

    def handle(self, request: Envelope) -> Envelope:
        """Answer one request; a request that is not followed is answered with a fixed code.

        The reason goes to the site's own log. It never travels: it could say something about records.
        """
        handler = self._handlers.get(request.kind)
        try:
            if handler is None:
                raise RefusedError(f"This plan has no stage {request.kind!r}.")
            return handler(request)
        except FedwardError as error:
            _log.warning("%s: %s was not answered: %s", self.name, request.kind, error)
            return refusal_of(request.kind, error.code)

    def _hello(self, request: Envelope) -> Envelope:
        return Envelope(kind=HELLO, header={"site": self.name, "plan_hash": self.plan.hash})

    def _train(self, request: Envelope) -> Envelope:
        """Train from the model that was sent and keep the update for `upload`."""
        server_round, spool = self._open_round(request)
        vector = request.vector("model", np.float32)
        model_hash = vector_hash(vector)
        if spool.load(server_round=server_round, model_hash=model_hash) is None:
            update = self._fit(vector, server_round)
            spool.save(update, server_round=server_round, model_hash=model_hash)
        return Envelope(kind=TRAIN, header={"round": server_round, "model_hash": model_hash})

    def _upload(self, request: Envelope) -> Envelope:
        """Send the spooled update through the stages."""
        server_round, spool = self._open_round(request)
        update = spool.load(server_round=server_round, model_hash=request.text("model_hash"))
        if update is None:
            raise RefusedError(f"There is no finished update for round {server_round} of this model.")
        fields = apply_stages(self.stages, update.fields, weight=update.weight)
        return Envelope(kind=UPLOAD, header={"round": server_round}, arrays=dict(fields))

    def _open_round(self, request: Envelope) -> tuple[int, UpdateSpool]:
        """Check what every stage of a round carries; rounds only grow."""
        if request.text("plan_hash") != self.plan.hash:
            raise RefusedError("The request is of another plan than the one this site has agreed to.")
        server_round = request.integer("round")
        if not max(1, self._round) <= server_round <= self.plan.federation.rounds:
            raise RefusedError(
                f"Round {server_round} was asked for; this site is at round {self._round} of "
                f"{self.plan.federation.rounds}."
            )
        self._round = server_round
        run_id = request.text("run_id")
        if not run_id.isalnum() or len(run_id) > 64:
            raise RefusedError("The run id is not a short word of letters and digits.")
        return server_round, UpdateSpool(self.spool_folder, plan_hash=self.plan.hash, run_id=run_id)

    def _fit(self, vector: NDArray[np.float32], server_round: int) -> ModelUpdate:
        """Train the shared model from `vector` and return the change."""
        examples = self.examples()
        with self.host.lock:
            self.host.write(vector)
            trainer = LocalTrainer(self.host.model, self.plan, pad_id=self.host.encoding.pad_id)
            on_step = self._on_step
            report = None if on_step is None else lambda progress: on_step(self.name, progress)
            result = trainer.train(examples, site=self.name, server_round=server_round, on_step=report)
            delta = self.host.read() - vector
        statistics = {
            "num_examples": result.num_examples,
            "num_tokens": result.num_tokens,
            "loss_sum": result.loss_sum,
        }
        fields = {DELTA: delta, **{k: np.array([v], dtype=np.float32) for k, v in statistics.items()}}
        return ModelUpdate(fields=fields, weight=self.weight)

    def examples(self) -> list[Example]:
        """Return the site's training windows, encoded once.

        Raises:
            DataError: The site has no examples.
        """
        if self._examples is None:
            unit = self.plan.privacy.unit if self.plan.privacy else "record"
            self._examples = self.host.encoding.examples(self._notes, unit=unit)
        if not self._examples:
            raise DataError(f"Site {self.name} has no training examples; give it records or leave it out.")
        return self._examples
