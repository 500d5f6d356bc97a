"""The run's own audit log: which rounds were opened over whom, who declined, and what was released.

Append-only: a run that is resumed writes the rounds it repeats again, because they did happen twice. The server
has no identity key, so its lines are chained and not signed; `common.audit_log.verify` finds an edit in the
middle, and a head that was noted elsewhere finds a log that was replaced as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.audit_log import AuditLog
from common.plan import Plan

if TYPE_CHECKING:
    from server.rounds import RoundListener


class RunAudit:
    """Writes the entries of one run.

    Args:
        path: The log's file.
        plan: The agreed plan.
        run_id: fedward's run id.
    """

    def __init__(self, path: Path, plan: Plan, run_id: str) -> None:
        self._log = AuditLog(path)
        self._run = {"plan_hash": plan.hash, "run_id": run_id}
        self._secure = plan.secure_aggregation.enabled
        self._private = plan.privacy is not None
        self._round = 0

    def begin_round(self, server_round: int) -> None:
        """Remember the round that refusals belong to."""
        self._round = server_round

    def refused(self, stage: str, site: str, code: str) -> None:
        """Write that a site declined a stage, was late or could not be understood."""
        self._log.append(
            "refusal",
            **self._run,
            server_round=self._round,
            stage=stage.replace("_", "-"),
            site=site,
            code=code.replace("_", "-"),
        )

    def closed(self, row: Mapping[str, Any]) -> None:
        """Write a round that is over, from its metrics; `lost` where no sum was opened."""
        self._log.append(
            "round",
            **self._run,
            server_round=int(row["round"]),
            sites=len(row["sites"]),
            attempt=int(row.get("attempts", 0)),
            code="lost" if row.get("lost") else "opened",
            secure_aggregation=self._secure,
        )

    def released(self, model_hash: str, epsilon: float | None) -> None:
        """Write that the run's model was chosen and saved, with the largest epsilon of a site if private."""
        spent = {"epsilon": epsilon} if self._private and epsilon is not None else {}
        self._log.append("release", **self._run, what="model", model_hash=model_hash, **spent)


@dataclass(frozen=True)
class AuditedListener:
    """Hands everything on to another listener, and refusals to the audit log as well."""

    listener: RoundListener
    audit: RunAudit

    def on_round(self, server_round: int, rounds: int) -> None:
        """A round begins."""
        self.audit.begin_round(server_round)
        self.listener.on_round(server_round, rounds)

    def on_stage(self, stage: str, sites: Sequence[str]) -> None:
        """A stage begins."""
        self.listener.on_stage(stage, sites)

    def on_reply(self, stage: str, site: str, refusal: str | None) -> None:
        """A site has answered a stage, or has not done what was asked."""
        if refusal is not None:
            self.audit.refused(stage, site, refusal)
        self.listener.on_reply(stage, site, refusal)

    def on_wait(self, present: int, needed: int) -> None:
        """Fewer sites than needed are there."""
        self.listener.on_wait(present, needed)

    def on_metrics(self, metrics: Mapping[str, Any]) -> None:
        """A round is over and checkpointed."""
        self.listener.on_metrics(metrics)
