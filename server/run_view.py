"""A run as people watch it: sites by stage, rounds so far, child processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from common.roster import Roster
from server.deployment_state import DeploymentState
from server.run_folder import read_metrics
from server.run_progress import WAITING, Progress, read_progress

_RECENT = 5


@dataclass(frozen=True, kw_only=True)
class RunView:
    """What is known of a server and its run at one moment.

    Attributes:
        state: What the server has written.
        progress: What the ServerApp has written; None before it has.
        rows: Metrics of the rounds that are over.
        sites: Names of the roster.
    """

    state: DeploymentState
    progress: Progress | None
    rows: Sequence[Mapping[str, Any]]
    sites: Sequence[str]

    @classmethod
    def of(cls, state: DeploymentState, roster: Roster) -> RunView:
        """Read the run's folder."""
        out = Path(state.out)
        return cls(
            state=state,
            progress=read_progress(out),
            rows=read_metrics(out),
            sites=[member.name for member in roster],
        )

    def headline(self) -> str:
        """Return where the run stands, in one line."""
        progress = self.progress
        if self.state.message:
            return self.state.message
        if not self.state.running:
            return (
                f"The server is not running; 'fedward-server resume {self.state.out}' goes on with the run."
            )
        if progress is None:
            return "The ServerApp is being started."
        if progress.ended:
            return progress.message or "The run has finished."
        if progress.state == WAITING and progress.needed:
            return f"Waiting for sites: {progress.present} of at least {progress.needed} are there."
        stage = f", {progress.stage.replace('_', ' ')}" if progress.stage else ""
        return f"Round {progress.round} of {progress.rounds}{stage}." if progress.round else "The run begins."

    def render(self) -> RenderableType:
        """Return the view for a screen."""
        parts: list[RenderableType] = [
            f"[bold]{escape(Path(self.state.out).name)}[/bold]  {escape(self.headline())}"
        ]
        parts.append(self._site_table())
        if self.rows:
            parts.append(self._round_table())
        parts += [escape(sentence) for sentence in self.state.refusals]
        restarts = [
            f"{name} {child.restarts}×" for name, child in self.state.children.items() if child.restarts
        ]
        restarts += [f"ServerApp {self.state.resumes}×"] if self.state.resumes else []
        if restarts:
            parts.append(f"Started again: {', '.join(restarts)}.")
        return Group(*parts)

    def table(self) -> dict[str, Any]:
        """Return the same as plain JSON values."""
        progress = self.progress
        return {
            "running": self.state.running,
            "out": self.state.out,
            "headline": self.headline(),
            "state": progress.state if progress else "starting",
            "round": progress.round if progress else 0,
            "rounds": progress.rounds if progress else 0,
            "stage": progress.stage if progress else "",
            "sites": {site: self._doing(site) for site in self.sites},
            "online": list(self.state.online),
            "rounds_done": len(self.rows),
            "restarts": {name: child.restarts for name, child in self.state.children.items()},
            "resumes": self.state.resumes,
            "refusals": list(self.state.refusals),
        }

    def _doing(self, site: str) -> str:
        """Return what a site does in the current stage."""
        answers = self.progress.sites if self.progress else {}
        return answers.get(site, "")

    def _site_table(self) -> Table:
        """Return a row a site."""
        stage = self.progress.stage.replace("_", " ") if self.progress else ""
        table = Table("site", "connected", stage or "stage")
        for site in self.sites:
            table.add_row(site, "yes" if site in self.state.online else "no", self._doing(site))
        return table

    def _round_table(self) -> Table:
        """Return a row for each of the last rounds."""
        table = Table("round", "sites", "seconds", "F1", "loss")
        for row in self.rows[-_RECENT:]:
            f1 = row.get("devel", {}).get("micro", {}).get("f1")
            loss = row.get("train_loss")
            table.add_row(
                str(row["round"]),
                str(len(row["sites"])),
                f"{row['seconds']:.1f}",
                "" if f1 is None else f"{f1:.4f}",
                "lost" if row.get("lost") else "" if loss is None else f"{loss:.4f}",
            )
        return table
