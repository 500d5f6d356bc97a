"""What a run's operator sees: the bridge from the round loop's events to the console."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console

from server.console import RoundProgress


class ConsoleWatch:
    """Listens to the round loop; a `RoundListener`.

    Use it as a context manager, so that the bar is there while the run lasts.

    Args:
        progress: The bar; None shows none.
        say: Gets a sentence now and then, such as that sites are missing; by default they are dropped.
    """

    def __init__(
        self, progress: RoundProgress | None, *, say: Callable[[str], None] = lambda sentence: None
    ) -> None:
        self._progress = progress
        self._say = say
        self._present: int | None = None

    @classmethod
    def on(cls, console: Console, rounds: int) -> Self:
        """Return a watch that shows a bar on a console; without a terminal, a line a round."""
        return cls(
            RoundProgress(console, rounds),
            say=lambda sentence: console.print(sentence, markup=False, highlight=False, soft_wrap=True),
        )

    def __enter__(self) -> Self:
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
        self._present = None
        if self._progress:
            self._progress.start_round(server_round, sites=0)

    def on_stage(self, stage: str, sites: Sequence[str]) -> None:
        """Start a stage."""
        if self._progress:
            self._progress.start_stage(stage, sites=len(sites))

    def on_reply(self, stage: str, site: str, refusal: str | None) -> None:
        """Count a site's answer, and say so if it declined."""
        if refusal is not None:
            self._say(f"{site} did not take part in {stage}: {refusal}.")
        if self._progress:
            self._progress.site_done(site)

    def on_wait(self, present: int, needed: int) -> None:
        """Say that sites are missing, once for each number of them."""
        if present != self._present:
            self._present = present
            self._say(f"Waiting for sites: {present} of at least {needed} are there.")

    def on_metrics(self, metrics: Mapping[str, Any]) -> None:
        """End a round."""
        if self._progress:
            self._progress.end_round(shown_metrics(metrics))


def shown_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return of a round's metrics what fits on a line."""
    return {
        "round": metrics["round"],
        "micro_f1": metrics.get("devel", {}).get("micro", {}).get("f1"),
        "train_loss": metrics.get("train_loss"),
        "participants": len(metrics["sites"]),
        "seconds": metrics["seconds"],
    }
