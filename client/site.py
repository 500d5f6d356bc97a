"""One site: its records, its spool, and its answers to each stage of a round.

A site treats what arrives as if a malicious server had sent it: every request is held against the plan,
the roster and what the site has answered before. What it reports of a failure is a fixed code.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from client.ledger import Receipt
from client.private_round import Budget, choose_training
from client.round_guard import RoundGuard
from client.round_training import RoundTask, SiteRecords
from client.secure_aggregation import SecureAggregationClient
from client.spool import UpdateSpool
from common.audit_log import AuditLog
from common.errors import FedwardError, ProtocolRefused, RefusedError
from common.files import write_once
from common.host import ModelHost
from common.messages import (
    CONFIRM,
    HELLO,
    LEDGER_HEAD,
    SHARE_KEYS,
    TRAIN,
    UNMASK,
    UPLOAD,
    Envelope,
    Scalar,
    refusal_of,
)
from common.parameters import vector_hash
from common.plan import Plan
from common.records import Example, ModelUpdate, Note
from common.roster import Roster
from common.secure_plan import attempt_context, ring_layout, secure_parameters
from common.stages import UpdateStage, Weighting, apply_stages
from common.training import Progress

_log = logging.getLogger(__name__)


class Site:
    """A member of a federation, in one process.

    Args:
        name: The site's name in the roster.
        plan: The plan that the site has agreed to.
        roster: The members and their public weights.
        notes: The site's training records.
        host: The model that the site trains; may be shared with other sites of a simulation.
        spool: Folder for finished updates, the round guard and the audit log; the site's alone.
        identity_key: Signs what secure aggregation and the audit log need signed.
        budget: The privacy ledger and the policy that private plans are held against; None refuses them.
        on_step: Called after each optimizer step, for progress bars on the same machine.
        admit: Called before each training; raises where the operator has taken the approval back.
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
        identity_key: Ed25519PrivateKey,
        budget: Budget | None = None,
        on_step: Callable[[str, Progress], None] | None = None,
        admit: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.budget = budget
        self._admit = admit
        self.plan = plan
        self.roster = roster
        self.weight = roster.weight(name)
        self.host = host
        self.spool_folder = spool
        self.stages: Sequence[UpdateStage] = (Weighting(),)
        self._identity_key = identity_key
        spool.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._audit = AuditLog(spool / "audit.jsonl", key=identity_key)
        unit = plan.privacy.unit if plan.privacy else "record"
        self._records = SiteRecords(notes, host, unit=unit)
        self._training = choose_training(
            name=name,
            plan=plan,
            roster=roster,
            host=host,
            records=self._records,
            budget=budget,
            on_step=None if on_step is None else partial(on_step, name),
            on_charge=self._note_charge,
        )
        self._round = 0
        self._attempt: SecureAggregationClient | None = None
        self._handlers: dict[str, Callable[[Envelope], Envelope]] = {
            HELLO: self._hello,
            TRAIN: self._train,
            UPLOAD: self._upload,
        }
        if plan.secure_aggregation.enabled:
            self._handlers |= {
                SHARE_KEYS: self._share_keys,
                UPLOAD: self._masked_upload,
                CONFIRM: self._confirm,
                UNMASK: self._unmask,
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
            self._note_refusal(request, error.code)
            return refusal_of(request.kind, error.code)

    def forget(self) -> None:
        """Lose what is held in memory alone, as a crash does: attempt secrets and encoded records."""
        self._attempt = None
        self._records.forget()
        self._round = 0

    def examples(self) -> list[Example]:
        """Return the site's training windows, encoded once."""
        return self._records.examples()

    def _hello(self, request: Envelope) -> Envelope:
        return Envelope(kind=HELLO, header={"site": self.name, "plan_hash": self.plan.hash})

    def _train(self, request: Envelope) -> Envelope:
        """Train from the model that was sent, keep the update, and begin an attempt to aggregate it.

        A retry names the model by its hash alone, and uses the update that is there.
        """
        self._admit()
        server_round, spool = self._open_round(request)
        secure = self.plan.secure_aggregation.enabled
        if secure:
            # Before anything is charged: a second run of this plan gets no sum, so it gets no training.
            self._pin_run(request.text("run_id"))
        task = RoundTask(
            run_id=request.text("run_id"),
            server_round=server_round,
            attempt=request.integer("attempt") if secure else 0,
            model_hash=request.text("model_hash"),
            model=lambda: self._model(request),
            ledger_head=request.text(LEDGER_HEAD) if LEDGER_HEAD in request.header else "",
        )
        header: dict[str, Scalar] = {
            "round": server_round,
            "model_hash": task.model_hash,
            **self._training.finish(task, spool),
        }
        if secure:
            header["advert"] = self._begin_attempt(request, task)
        return Envelope(kind=TRAIN, header=header)

    def _model(self, request: Envelope) -> NDArray[np.float32]:
        """Return the model that a request brings, if it is the one that it names and fits the plan."""
        vector: NDArray[np.float32] = request.vector("model", np.float32)
        if vector_hash(vector) != request.text("model_hash"):
            raise ProtocolRefused("The model that was sent has another hash than the request says.")
        if vector.shape[0] != self.host.layout.size:
            raise ProtocolRefused(
                f"The model that was sent has {vector.shape[0]} parameters; this plan trains "
                f"{self.host.layout.size}."
            )
        return vector

    def _upload(self, request: Envelope) -> Envelope:
        """Send the spooled update through the stages, for a plan without secure aggregation."""
        update = self._finished(request)
        return Envelope(kind=UPLOAD, header={"round": self._round}, arrays=dict(update.fields))

    def _begin_attempt(self, request: Envelope, task: RoundTask) -> bytes:
        """Start the state machine of one attempt and return its signed advert."""
        layout = ring_layout(self.plan, parameters=self.host.layout.size, sites=len(self.roster))
        self._attempt = SecureAggregationClient(
            name=self.name,
            identity_key=self._identity_key,
            roster=self.roster,
            parameters=secure_parameters(self.plan),
            layout=layout,
            context=attempt_context(
                self.plan,
                layout,
                model_hash=task.model_hash,
                server_round=task.server_round,
                attempt=task.attempt,
                nonce=request.payload("nonce"),
            ),
            guard=RoundGuard(self._plan_folder),
            audit=self._note,
        )
        return self._attempt.advertise()

    def _share_keys(self, request: Envelope) -> Envelope:
        shares = self._current_attempt(request).share_keys(request.payload("adverts"))
        return Envelope(kind=SHARE_KEYS, header={"shares": shares})

    def _masked_upload(self, request: Envelope) -> Envelope:
        attempt = self._current_attempt(request)
        header, masked = attempt.upload(request.payload("delivery"), self._finished(request))
        return Envelope(kind=UPLOAD, header={"upload": header}, arrays={"masked": masked})

    def _confirm(self, request: Envelope) -> Envelope:
        confirmation = self._current_attempt(request).confirm(request.payload("survivors"))
        return Envelope(kind=CONFIRM, header={"confirmation": confirmation})

    def _unmask(self, request: Envelope) -> Envelope:
        shares = self._current_attempt(request).unmask(request.payload("signatures"))
        self._attempt = None
        return Envelope(kind=UNMASK, header={"shares": shares})

    def _current_attempt(self, request: Envelope) -> SecureAggregationClient:
        """Return the attempt under way; after a crash there is none, and the site has dropped out of it."""
        self._open_round(request)
        if self._attempt is None:
            raise ProtocolRefused("No attempt is under way at this site.")
        return self._attempt

    def _finished(self, request: Envelope) -> ModelUpdate:
        """Return the spooled update of the round that a request names, after all stages."""
        server_round, spool = self._open_round(request)
        update = spool.load(server_round=server_round, model_hash=request.text("model_hash"))
        if update is None:
            raise RefusedError(f"There is no finished update for round {server_round} of this model.")
        fields = apply_stages(self.stages, update.fields, weight=update.weight)
        return ModelUpdate(fields=fields, weight=update.weight)

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

    @property
    def _plan_folder(self) -> Path:
        """What the site remembers of this plan across restarts."""
        return self.spool_folder / self.plan.hash[:16]

    def _pin_run(self, run_id: str) -> None:
        """Let one run use a plan: a second run of it could difference its sums against the first one's."""
        pinned = write_once(self._plan_folder / "run-id", run_id)
        if pinned != run_id:
            raise ProtocolRefused(
                "This plan belongs to another run at this site already; a new run needs a new plan hash "
                "(a new seed will do) and a new approval."
            )

    def _note(self, event: str, details: Mapping[str, str | int]) -> None:
        """Put an answer of secure aggregation on the audit log; `handle` puts the refusals there."""
        if "code" not in details:
            stage = str(details["stage"]).replace("_", "-")
            self._audit.append(
                "round", server_round=details["round"], attempt=details["attempt"], stage=stage
            )

    def _note_refusal(self, request: Envelope, code: str) -> None:
        """Put a refusal on the audit log, with the numbers that the request brought; not with its reason."""
        attempt = request.header.get("attempt", self._attempt.number if self._attempt else None)
        numbers = {"server_round": request.header.get("round"), "attempt": attempt}
        # What a server sends may be anything; what the log takes is checked there, so it is chosen here.
        known = {k: v for k, v in numbers.items() if type(v) is int and 0 <= v < 2**53}
        self._audit.append("refusal", stage=request.kind.replace("_", "-"), code=code, **known)

    def _note_charge(self, task: RoundTask, receipt: Receipt) -> None:
        """Put a charge on the audit log, as the ledger has it."""
        self._audit.append(
            "charge",
            plan_hash=self.plan.hash,
            run_id=task.run_id,
            server_round=task.server_round,
            ledger_sequence=receipt.sequence,
            ledger_hash=receipt.hash,
            recharge=receipt.recharge,
            epsilon=receipt.spent.epsilon,
            delta=receipt.spent.delta,
            unit=receipt.spent.unit,
        )
