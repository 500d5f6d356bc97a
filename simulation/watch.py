"""The watch of a simulation: what a server sees, and how far each site of this process is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from client.trainer import Progress
from server.watch import ConsoleWatch, shown_metrics


class RunWatch(ConsoleWatch):
    """Listens to the round loop and to the sites of this process."""

    _report: Callable[[Mapping[str, Any]], None] | None = None

    @classmethod
    def silent(cls, rounds: int) -> RunWatch:
        """Return a watch that shows nothing."""
        return cls(None)

    @classmethod
    def lines(cls, report: Callable[[str], None], rounds: int) -> RunWatch:
        """Return a watch that reports one line a round."""
        watch = cls(None)
        watch._report = lambda shown: report(
            f"federated: round {shown['round']}/{rounds}, devel F1 {shown['micro_f1'] or 0:.4f}, "
            f"{shown['participants']} sites, {shown['seconds']:.0f} s"
        )
        return watch

    def on_step(self, site: str, progress: Progress) -> None:
        """Show how far a site's training is."""
        if self._progress:
            self._progress.site_progress(site, progress.step / progress.steps)

    def on_metrics(self, metrics: Mapping[str, Any]) -> None:
        """End a round."""
        if self._report:
            self._report(shown_metrics(metrics))
        super().on_metrics(metrics)
