"""The round loop over a Flower Grid: ask, fold, step, checkpoint, evaluate, report.

Flower's `Strategy.start` fixes two exchanges and cannot resume, so the loop is ours. Each round starts
from a checkpoint and ends in one; a run that is killed at any moment continues from the last.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.errors import AgentError, DecodeError, FedwardError, LedgerError, PolicyError, RoundError
from common.messages import LEDGER_HEAD, TRAIN, UPLOAD, Envelope
from common.parameters import vector_hash
from common.plan import Plan
from common.roster import Roster
from common.stages import DELTA, Fields, UpdateStage, Weighting, field_names, undo_stages
from server.aggregation import RunningSum
from server.checkpoint import Checkpoint, CheckpointStore
from server.cohort import Cohort
from server.exchange import NODE_ERROR, Exchange
from server.optimizer import ServerOptimizer, decay_factor
from server.privacy_record import PrivacyRecord

_log = logging.getLogger(__name__)

FloatVector = NDArray[np.float32]

_FINAL_REFUSALS = (LedgerError.code, PolicyError.code)

_BROKEN = (NODE_ERROR, AgentError.code)
"""What is heard of a site whose SuperNode or agent died: both are started again within seconds."""

_PAUSE_SECONDS = 10.0


class SumLostError(RoundError):
    """A round ended without a sum and cannot be repeated; the next one can begin."""


class RoundListener(Protocol):
    """What a run tells whoever watches it."""

    def on_round(self, server_round: int, rounds: int) -> None:
        """A round begins."""

    def on_stage(self, stage: str, sites: Sequence[str]) -> None:
        """A stage of the round begins with these sites."""

    def on_reply(self, stage: str, site: str, refusal: str | None) -> None:
        """A site has answered a stage, or has declined with a code."""

    def on_wait(self, present: int, needed: int) -> None:
        """Fewer sites than needed are there."""

    def on_metrics(self, metrics: Mapping[str, Any]) -> None:
        """A round is over and checkpointed."""


@dataclass(frozen=True, kw_only=True)
class RoundSum:
    """What the server opened in one round.

    Attributes:
        total: The fields of the sum, as the sites' last stage left them.
        sites: The sites in the sum.
        attempts: Attempts that it took.
    """

    total: Fields = field(repr=False)
    sites: tuple[str, ...]
    attempts: int = 1


@dataclass(frozen=True, kw_only=True)
class RoundRequest:
    """What a round is about: the model that all sites start from."""

    run_id: str
    server_round: int
    vector: FloatVector = field(repr=False)
    model_hash: str


class Aggregator(Protocol):
    """One way to get from trained sites to the sum of their updates."""

    def train_header(self, request: RoundRequest) -> dict[str, Any]:
        """Return what `train` carries for this aggregator."""

    def collect(self, request: RoundRequest, trained: Mapping[str, Envelope]) -> RoundSum:
        """Return the sum over the sites that trained and could be summed."""


class Conversation:
    """Exchanges of one run, with the header that every request carries."""

    def __init__(self, exchange: Exchange, plan: Plan, listener: RoundListener) -> None:
        self.exchange = exchange
        self.plan = plan
        self.listener = listener
        self.seconds: dict[str, float] = {}

    def ask(
        self,
        kind: str,
        sites: Sequence[str],
        request: RoundRequest,
        *,
        header: Mapping[str, Any] | Callable[[str], Mapping[str, Any]] = {},  # noqa: B006 - never changed
        arrays: Mapping[str, NDArray[Any]] = {},
        deadline: float,
        on_reply: Callable[[str, Envelope], None],
    ) -> dict[str, str]:
        """Send one stage to sites and hand each good reply to `on_reply` as it comes.

        Returns:
            The fixed code of each site that answered without doing what was asked.
        """
        refusals: dict[str, str] = {}
        common: dict[str, Any] = {
            "plan_hash": self.plan.hash,
            "run_id": request.run_id,
            "round": request.server_round,
            "model_hash": request.model_hash,
        }
        started = time.monotonic()
        self.listener.on_stage(kind, sites)
        envelopes = {
            site: Envelope(
                kind=kind, header={**common, **(header(site) if callable(header) else header)}, arrays=arrays
            )
            for site in sites
        }
        for reply in self.exchange.run(envelopes, deadline=deadline, group=str(request.server_round)):
            refusal = reply.refusal
            if refusal is None:
                try:
                    on_reply(reply.site, reply.envelope)
                except FedwardError as error:
                    _log.warning("The %s reply of %s is left out: %s", kind, reply.site, error)
                    refusal = error.code
            if refusal is not None:
                refusals[reply.site] = refusal
            self.listener.on_reply(kind, reply.site, refusal)
        self.seconds[kind] = self.seconds.get(kind, 0.0) + time.monotonic() - started
        return refusals


class PlainAggregator:
    """Sums updates that the server can read; the plan says so, and sites must have agreed."""

    def __init__(self, conversation: Conversation, roster: Roster) -> None:
        self.conversation = conversation
        self.roster = roster

    def train_header(self, request: RoundRequest) -> dict[str, Any]:
        """Nothing besides what every request carries."""
        return {}

    def collect(self, request: RoundRequest, trained: Mapping[str, Envelope]) -> RoundSum:
        """Fold the uploads one by one as they come; the sum does not depend on their order."""
        total = RunningSum(weighted_fields=())
        sites: list[str] = []
        expected = frozenset(field_names(private=self.conversation.plan.privacy is not None))

        def fold(site: str, reply: Envelope) -> None:
            if site in sites:
                raise RoundError(f"{site} uploaded twice.")
            # Checked against plan and model: the first reply must not decide for all others what fits.
            if frozenset(reply.arrays) != expected:
                raise DecodeError(
                    f"{site} uploaded other fields than the plan's: {', '.join(sorted(expected))}."
                )
            if reply.vector(DELTA, np.float32).shape != request.vector.shape:
                raise DecodeError(f"{site} uploaded a change of another length than the model's.")
            total.add(
                {name: reply.vector(name, np.float32) for name in reply.arrays}, self.roster.weight(site)
            )
            sites.append(site)

        self.conversation.ask(
            UPLOAD,
            sorted(trained),
            request,
            deadline=self.conversation.plan.federation.exchange_deadline,
            on_reply=fold,
        )
        fields = {name: total.total(name) for name in total.fields} if sites else {}
        return RoundSum(total=fields, sites=tuple(sorted(sites)))


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands between two rounds.

    Attributes:
        run_id: fedward's run id, the same across resumes.
        server_round: Rounds completed.
        weights: The global model, `(parameters,)`.
        history: Metrics of each completed round.
        best: The weights of the round that did best on the development set, with that round's number.
    """

    run_id: str
    server_round: int = 0
    weights: FloatVector = field(repr=False)
    history: tuple[Mapping[str, Any], ...] = ()
    best: FloatVector | None = field(default=None, repr=False)
    best_round: int = 0
    best_score: float = -1.0


class RoundLoop:
    """Runs the rounds of one plan.

    Args:
        plan: The agreed plan.
        cohort: Finds the sites.
        conversation: Talks to them.
        aggregator: Sums their updates.
        optimizer: Steps the global model.
        store: Receives a checkpoint after each round.
        evaluate: Scores a model vector on the server's development set; None without one.
        privacy: Counts what sites are asked to train, under a private plan.
        stages: What sites applied to their updates, undone here in reverse.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        roster: Roster,
        cohort: Cohort,
        conversation: Conversation,
        aggregator: Aggregator,
        optimizer: ServerOptimizer,
        store: CheckpointStore,
        evaluate: Callable[[FloatVector], Mapping[str, Any]] | None,
        privacy: PrivacyRecord | None = None,
        stages: Sequence[UpdateStage] = (Weighting(),),
    ) -> None:
        self.plan = plan
        self.roster = roster
        self.cohort = cohort
        self.conversation = conversation
        self.aggregator = aggregator
        self.optimizer = optimizer
        self.store = store
        self.evaluate = evaluate
        self.privacy = privacy
        self.stages = stages
        self.listener = conversation.listener
        self.on_row: Sequence[Callable[[Mapping[str, Any]], None]] = ()

    def listen(self, listener: RoundListener) -> None:
        """Tell another listener from now on."""
        self.listener = self.conversation.listener = listener

    def run(self, state: RunState) -> RunState:
        """Run all rounds that are left.

        Raises:
            RoundError: A round could not be completed; everything before it is checkpointed.
        """
        rounds = self.plan.federation.rounds
        if state.server_round == 0:
            self.store.save(self._checkpoint(state))
        while state.server_round < rounds:
            self.listener.on_round(state.server_round + 1, rounds)
            state = self.run_round(state)
            self.store.save(self._checkpoint(state))
            for record in self.on_row:
                record(state.history[-1])
            self.listener.on_metrics(state.history[-1])
            _require_progress(state.history)
        return state

    def run_round(self, state: RunState) -> RunState:
        """Run the next round and return the state after it."""
        started = time.monotonic()
        self.conversation.seconds.clear()
        request = RoundRequest(
            run_id=state.run_id,
            server_round=state.server_round + 1,
            vector=state.weights,
            model_hash=vector_hash(state.weights),
        )
        try:
            opened = self.aggregator.collect(request, self._train(request))
        except SumLostError as error:
            return self._without_sum(state, error, started)
        federation = self.plan.federation
        minimum = federation.minimum_cohort
        if len(opened.sites) < minimum:
            raise RoundError(
                f"Round {request.server_round} ended with {len(opened.sites)} of at least {minimum} sites "
                "(federation.minimum_cohort); its sum was not used, and the run can be resumed."
            )
        weights = [self.roster.weight(site) for site in opened.sites]
        fields = undo_stages(self.stages, opened.total, weights=weights)
        mean = np.asarray(fields[DELTA], dtype=np.float32)
        factor = decay_factor(federation.server_decay, request.server_round, federation.rounds)
        vector = self.optimizer.step(state.weights, mean, factor=factor)
        metrics = {
            "round": request.server_round,
            "sites": list(opened.sites),
            "attempts": opened.attempts,
            **_training_metrics(fields),
        }
        return self._scored(state, vector, metrics, started)

    def _without_sum(self, state: RunState, error: SumLostError, started: float) -> RunState:
        """Go on with the same model after a round that was lost."""
        _log.warning("%s The model stays as it was.", error)
        seconds = time.monotonic() - started
        row = {
            "round": state.server_round + 1,
            "sites": [],
            "lost": True,
            "seconds": seconds,
            "seconds_by_stage": dict(self.conversation.seconds),
        }
        return replace(state, server_round=state.server_round + 1, history=(*state.history, row))

    def restore(self, checkpoint: Checkpoint) -> RunState:
        """Return the state that a checkpoint holds, and load the optimizer's.

        Raises:
            PlanError: The checkpoint is of another plan.
        """
        checkpoint.require_plan(self.plan.hash)
        vectors = dict(checkpoint.optimizer_state)
        best = vectors.pop("best_weights", None)
        self.optimizer.load_state(vectors)
        return RunState(
            run_id=checkpoint.run_id,
            server_round=checkpoint.round,
            weights=checkpoint.weights,
            history=tuple(checkpoint.history),
            best=best,
            best_round=int(checkpoint.extra.get("best_round", 0)),
            best_score=float(checkpoint.extra.get("best_score", -1.0)),
        )

    def _train(self, request: RoundRequest) -> dict[str, Envelope]:
        """Let every site that can be reached train; return the replies of those that did.

        Where too few did because SuperNodes or agents broke down, these are asked again within the plan's deadline:
        a round that is lost costs every other site what it has charged.

        Raises:
            RoundError: Too few did, because budgets or policies do not allow it.
        """
        federation = self.plan.federation
        sites = self.cohort.gather(deadline=federation.train_deadline, on_wait=self.listener.on_wait)
        header = self.aggregator.train_header(request)
        trained: dict[str, Envelope] = {}
        end = time.monotonic() + federation.train_deadline
        for repeat in range(federation.attempts):
            deadline = end - time.monotonic()
            refusals = self._ask_to_train(request, sites, header, trained, deadline=deadline)
            self._require_willing(request, trained, refusals)
            sites = [site for site, code in sorted(refusals.items()) if code in _BROKEN]
            pause = _PAUSE_SECONDS * 2**repeat
            if len(trained) >= federation.minimum_cohort or not sites or time.monotonic() + pause >= end:
                break
            _log.warning("%s broke down and will be asked to train again.", ", ".join(sites))
            time.sleep(pause)
        return trained

    def _ask_to_train(
        self,
        request: RoundRequest,
        sites: Sequence[str],
        header: Mapping[str, Any],
        trained: dict[str, Envelope],
        *,
        deadline: float,
    ) -> dict[str, str]:
        """Ask sites to train, put the replies of those that did into `trained`, and return the others' codes."""
        if self.privacy is not None:
            self.privacy.ask(sites)

        def keep(site: str, reply: Envelope) -> None:
            trained[site] = reply
            if self.privacy is not None:
                self.privacy.keep_head(site, reply.header.get(LEDGER_HEAD))

        return self.conversation.ask(
            TRAIN,
            sites,
            request,
            header=lambda site: {**header, **self._echo(site)},
            arrays={"model": request.vector},
            deadline=deadline,
            on_reply=keep,
        )

    def _echo(self, site: str) -> dict[str, str]:
        """Return the last ledger head of a site, for the site to hold its ledger against."""
        head = "" if self.privacy is None else self.privacy.head(site)
        return {LEDGER_HEAD: head} if head else {}

    def _require_willing(
        self, request: RoundRequest, trained: Mapping[str, Envelope], refusals: Mapping[str, str]
    ) -> None:
        """Stop the run where too few sites are left that may train: asking again would not help."""
        declined = {site: code for site, code in refusals.items() if code in _FINAL_REFUSALS}
        minimum = self.plan.federation.minimum_cohort
        if declined and len(trained) < minimum:
            told = ", ".join(f"{site} ({code})" for site, code in sorted(declined.items()))
            raise RoundError(
                f"Round {request.server_round}: {len(trained)} sites trained and the plan needs {minimum} "
                f"(federation.minimum_cohort). These declined by their own ledger or policy, whose logs say why: "
                f"{told}."
            )

    def _scored(
        self, state: RunState, vector: FloatVector, metrics: dict[str, Any], started: float
    ) -> RunState:
        """Evaluate the new model on the development set and keep the best."""
        after = replace(state, server_round=state.server_round + 1, weights=vector)
        if self.evaluate is not None:
            evaluation_started = time.monotonic()
            scores = self.evaluate(vector)
            self.conversation.seconds["evaluate"] = time.monotonic() - evaluation_started
            metrics["devel"] = scores
            score = float(scores["micro"]["f1"])
            if score > state.best_score:
                after = replace(after, best=vector, best_round=after.server_round, best_score=score)
        metrics["seconds"] = time.monotonic() - started
        metrics["seconds_by_stage"] = dict(self.conversation.seconds)
        return replace(after, history=(*state.history, metrics))

    def _checkpoint(self, state: RunState) -> Checkpoint:
        """Return what a resume needs."""
        vectors = self.optimizer.state()
        if state.best is not None:
            vectors = {**vectors, "best_weights": state.best}
        return Checkpoint(
            round=state.server_round,
            weights=state.weights,
            plan_hash=self.plan.hash,
            run_id=state.run_id,
            optimizer_state=vectors,
            history=state.history,
            extra={"best_round": state.best_round, "best_score": state.best_score},
        )


def _require_progress(history: Sequence[Mapping[str, Any]]) -> None:
    """Stop after two lost rounds in a row; both are checkpointed, so that a resume begins with the next."""
    if len(history) > 1 and all(row.get("lost") for row in history[-2:]):
        raise RoundError(
            f"Rounds {history[-2]['round']} and {history[-1]['round']} were lost, so the run stopped; see which "
            "sites can be reached, and resume it."
        )


def _training_metrics(fields: Fields) -> dict[str, Any]:
    """Return the statistics that rode along: sums of counts, and the mean loss per labelled word (nats)."""
    return {name: float(values[0]) for name, values in fields.items() if name != DELTA}
