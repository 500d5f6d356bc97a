"""The watch of a simulation: what a server sees, and how far each site of this process is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from common.training import Progress
from server.console import RoundProgress
from server.watch import ConsoleWatch, shown_metrics


class RunWatch(ConsoleWatch):
    """Listens to the round loop and to the sites of this process.

    Args:
        progress: The bar; None shows none.
        say: Gets a sentence now and then; by default they are dropped.
        report: Gets what a finished round's line shows.
    """

    def __init__(
        self,
        progress: RoundProgress | None,
        *,
        say: Callable[[str], None] = lambda sentence: None,
        report: Callable[[Mapping[str, Any]], None] = lambda shown: None,
    ) -> None:
        super().__init__(progress, say=say)
        self._report = report

    @classmethod
    def silent(cls, rounds: int) -> RunWatch:
        """Return a watch that shows nothing."""
        return cls(None)

    @classmethod
    def lines(cls, report: Callable[[str], None], rounds: int) -> RunWatch:
        """Return a watch that reports one line a round."""
        return cls(
            None,
            report=lambda shown: report(
                f"federated: round {shown['round']}/{rounds}, devel F1 {shown['micro_f1'] or 0:.4f}, "
                f"{shown['participants']} sites, {shown['seconds']:.0f} s"
            ),
        )

    def on_step(self, site: str, progress: Progress) -> None:
        """Show how far a site's training is."""
        if self._progress:
            self._progress.site_progress(site, progress.step / progress.steps)

    def on_metrics(self, metrics: Mapping[str, Any]) -> None:
        """End a round."""
        self._report(shown_metrics(metrics))
        super().on_metrics(metrics)
