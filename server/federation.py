"""One run from plan to report: build, resume or start, loop, choose, evaluate, save."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from common.errors import PlanError
from common.files import write_atomically
from common.host import ModelHost
from common.model import save_model
from common.parameters import vector_hash
from common.plan import Plan, read_plan
from common.prediction import Evaluation, evaluate
from common.private_plan import check_private_plan
from common.records import Note
from common.roster import Roster
from common.secure_plan import check_secure_plan
from server.checkpoint import CheckpointStore
from server.cohort import Cohort
from server.exchange import Exchange
from server.optimizer import make_server_optimizer
from server.privacy_record import PrivacyRecord
from server.report_page import render_report
from server.reporting import RunReport, installed_versions, result_of
from server.rounds import (
    Aggregator,
    Conversation,
    FloatVector,
    PlainAggregator,
    RoundListener,
    RoundLoop,
    RunState,
)
from server.run_audit import AuditedListener, RunAudit
from server.run_folder import RunFolder
from server.secure_rounds import SecureAggregator
from server.tracking import open_trackers
from server.warmup import warm_up


@dataclass(frozen=True, kw_only=True)
class FederationJob:
    """What a run is made of.

    Attributes:
        plan: The agreed plan.
        roster: The members.
        folder: The run's folder, open.
        host: The server's model.
        devel: Development notes of the server; the best round is chosen on them. May be empty.
        test: Test notes, looked at once, after the choice.
        listener: Watches the run.
        pullers: Threads that pull replies at once; 0 for a grid in this process.
        warnings: Sentences that a reader of the report must see first.
        warmup_notes: Public notes for the plan's `[warmup]`; from whoever starts the run.
    """

    plan: Plan
    roster: Roster
    folder: RunFolder
    host: ModelHost
    devel: Sequence[Note] = field(repr=False)
    test: Sequence[Note] = field(repr=False)
    listener: RoundListener
    pullers: int = 4
    warnings: Sequence[str] = ()
    warmup_notes: Sequence[Note] = field(default=(), repr=False)


def run_federation(grid: Grid, job: FederationJob) -> dict[str, Any]:
    """Run a federation over a grid to its end, and return what `result.json` holds.

    Continues from the folder's newest checkpoint where there is one.

    Raises:
        RoundError: A round could not be completed; the run can be resumed.
        PlanError: The folder holds a run of another plan.
    """
    started = time.monotonic()
    store = CheckpointStore(job.folder.checkpoints_path)
    loop = _loop(grid, job, store)
    state = _start_state(loop, store, job)
    audit = RunAudit(job.folder.audit_path, job.plan, state.run_id)
    loop.listen(AuditedListener(loop.listener, audit))
    job.folder.rewind(state.server_round, state.history)
    parameters: dict[str, str | int] = {
        "plan_hash": job.plan.hash,
        "seed": job.plan.seed,
        "sites": len(job.roster),
    }
    tracking = job.plan.tracking
    with open_trackers(
        job.folder,
        run_id=state.run_id,
        parameters=parameters,
        mlflow=tracking.mlflow,
        wandb=tracking.wandb,
        first_round=state.server_round + 1,
        history=state.history,
    ) as trackers:
        loop.on_row = (job.folder.append_metrics, audit.closed, trackers.log_round)
        state = loop.run(state)
        warnings = [*loop.cohort.warnings(), *trackers.warnings]
        result = _finish(job, state, warnings, audit, seconds=time.monotonic() - started)
        trackers.log_result(result)
    return result


def open_run(plan: Plan, out: Path, *, resume: bool, replace_run: bool = False) -> RunFolder:
    """Begin a run in a folder, or open the one that is there.

    Raises:
        PlanError: The run to resume is of another plan.
        InputError: The folder cannot be used.
    """
    if not resume:
        return RunFolder.create(out, plan.to_toml(), replace=replace_run)
    folder = RunFolder.open(out)
    # Asked here too, because a run that was killed early has no checkpoint that would tell.
    if read_plan(folder.plan_path).hash != plan.hash:
        folder.close()
        raise PlanError(
            f"The plan given is not the one of the run in {folder.path} (or the training notes are others); "
            "resume with the same plan, --set values and data, or start a new run in another folder."
        )
    return folder


def vector_evaluator(
    host: ModelHost, notes: Sequence[Note], precision: str
) -> Callable[[FloatVector], Evaluation]:
    """Return a function that scores a model vector on notes."""

    def score(vector: FloatVector) -> Evaluation:
        with host.lock:
            host.write(vector)
            return evaluate(host.model, notes, host.encoding, precision=precision)

    return score


def _loop(grid: Grid, job: FederationJob, store: CheckpointStore) -> RoundLoop:
    """Assemble the round loop."""
    plan = job.plan
    federation = plan.federation
    exchange = Exchange(grid, pullers=job.pullers)
    conversation = Conversation(exchange, plan, job.listener)
    score = vector_evaluator(job.host, job.devel, plan.training.precision)
    return RoundLoop(
        plan=plan,
        roster=job.roster,
        cohort=Cohort(exchange, job.roster, plan.hash, federation.minimum_cohort),
        conversation=conversation,
        aggregator=_aggregator(conversation, job),
        optimizer=make_server_optimizer(
            federation.optimizer,
            learning_rate=federation.server_learning_rate,
            momentum=federation.server_momentum,
            beta1=federation.beta1,
            beta2=federation.beta2,
            tau=federation.tau,
        ),
        store=store,
        evaluate=(lambda vector: score(vector).to_dict()) if job.devel else None,
        privacy=_privacy_record(job) if plan.privacy else None,
    )


def _privacy_record(job: FederationJob) -> PrivacyRecord:
    """Open the run's record of what its sites were asked to train."""
    return PrivacyRecord(job.folder.path / "privacy.json", job.plan, job.roster)


def _aggregator(conversation: Conversation, job: FederationJob) -> Aggregator:
    """Choose how updates are summed: masked, unless the plan's explicit line says otherwise."""
    parameters = job.host.layout.size
    check_secure_plan(job.plan, job.roster, parameters=parameters)
    check_private_plan(job.plan, job.roster)
    if not job.plan.secure_aggregation.enabled:
        return PlainAggregator(conversation, job.roster)
    record = job.folder.path / "attempt.json"
    return SecureAggregator(conversation, job.roster, parameters=parameters, record=record)


def _start_state(loop: RoundLoop, store: CheckpointStore, job: FederationJob) -> RunState:
    """Continue from the newest checkpoint, or begin: with the public warm-up, where the plan has one."""
    checkpoint = store.latest()
    if checkpoint is not None:
        return loop.restore(checkpoint)
    weights = job.host.read()
    if job.plan.warmup is not None:
        warmed = warm_up(job.plan, job.host, job.warmup_notes, devel=job.devel, test=job.test)
        write_atomically(_warmup_path(job), json.dumps(warmed.facts) + "\n")
        weights = warmed.vector
    return RunState(run_id=secrets.token_hex(8), weights=weights)


def _warmup_path(job: FederationJob) -> Path:
    """Return where the warm-up's facts are kept, for a run that is resumed."""
    return job.folder.path / "warmup.json"


def _finish(
    job: FederationJob, state: RunState, warnings: Sequence[str], audit: RunAudit, *, seconds: float
) -> dict[str, Any]:
    """Choose the model, save it, evaluate it once on the test set, and write result and report."""
    vector = state.best if state.best is not None else state.weights
    chosen = state.best_round if state.best is not None else state.server_round
    scores = vector_evaluator(job.host, job.test, job.plan.training.precision)(vector) if job.test else None
    with job.host.lock:
        job.host.write(vector)
        save_model(job.host.model, job.host.encoding.tokenizer, job.folder.model_path)
    report = _report(job, state, chosen, scores.to_dict() if scores else {}, seconds)
    report = replace(report, warnings=(*report.warnings, *warnings))
    result = result_of(report)
    job.folder.write_report(render_report(report))
    audit.released(vector_hash(vector), result["epsilon"])
    job.folder.write_result(result)
    return result


def _report(
    job: FederationJob, state: RunState, chosen: int, scores: Mapping[str, Any], seconds: float
) -> RunReport:
    """Gather what the run's report and result show."""
    claims = _privacy_record(job).claims()
    return RunReport(
        name=job.folder.name,
        run_id=state.run_id,
        evaluation=scores,
        history=state.history,
        planned_rounds=job.plan.federation.rounds,
        sites=[member.name for member in job.roster],
        privacy={site: claim.epsilon for site, claim in claims.items()},
        composition={site: claim.composition for site, claim in claims.items()},
        warmup=json.loads(_warmup_path(job).read_text("utf-8")) if job.plan.warmup else None,
        secure_aggregation=job.plan.secure_aggregation.enabled,
        plan_text=job.folder.plan_text(),
        plan_hash=job.plan.hash,
        seed=job.plan.seed,
        seconds=seconds,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        chosen_round=chosen,
        versions=installed_versions(),
        warnings=job.warnings,
    )
