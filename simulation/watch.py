"""The bridge from a run's events to its progress bar."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console

from client.trainer import Progress
from server.console import RoundProgress


class RunWatch:
    """Listens to the round loop and to the sites of this process.

    Args:
        progress: The bar; None watches nothing.
    """

    def __init__(self, progress: RoundProgress | None) -> None:
        self._progress = progress
        self._report: Callable[[Mapping[str, Any]], None] = lambda shown: None

    @classmethod
    def silent(cls, rounds: int) -> RunWatch:
        """Return a watch that shows nothing."""
        return cls(None)

    @classmethod
    def on(cls, console: Console, rounds: int) -> RunWatch:
        """Return a watch that shows a bar on a console."""
        return cls(RoundProgress(console, rounds))

    @classmethod
    def lines(cls, report: Callable[[str], None], rounds: int) -> RunWatch:
        """Return a watch that reports one line a round."""
        watch = cls(None)
        watch._report = lambda shown: report(
            f"federated: round {shown['round']}/{rounds}, devel F1 {shown['micro_f1'] or 0:.4f}, "
            f"{shown['participants']} sites, {shown['seconds']:.0f} s"
        )
        return watch

    def __enter__(self) -> RunWatch:
        """Show the bar."""
        if self._progress:
            self._progress.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the bar as it stands."""
        if self._progress:
            self._progress.__exit__(kind, error, traceback)

    def on_round(self, server_round: int, rounds: int) -> None:
        """Start a round."""
        if self._progress:
            self._progress.start_round(server_round, sites=0)

    def on_stage(self, stage: str, sites: Sequence[str]) -> None:
        """Start a stage."""
        if self._progress:
            self._progress.start_stage(stage, sites=len(sites))

    def on_reply(self, stage: str, site: str, refusal: str | None) -> None:
        """Count a site's answer."""
        if self._progress:
            self._progress.site_done(site)

    def on_step(self, site: str, progress: Progress) -> None:
        """Show how far a site's training is."""
        if self._progress:
            self._progress.site_progress(site, progress.step / progress.steps)

    def on_wait(self, present: int, needed: int) -> None:
        """Say that sites are missing."""

    def on_metrics(self, metrics: Mapping[str, Any]) -> None:
        """End a round."""
        shown = {
            "round": metrics["round"],
            "micro_f1": metrics.get("devel", {}).get("micro", {}).get("f1"),
            "train_loss": metrics.get("train_loss"),
            "participants": len(metrics["sites"]),
            "seconds": metrics["seconds"],
        }
        self._report(shown)
        if self._progress:
            self._progress.end_round(shown)
