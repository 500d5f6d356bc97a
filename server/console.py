"""What the server shows on the screen: the per-entity table and the progress of the rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

Scores = Mapping[str, float]

# Shares of a round's time by stage, roughly as measured in simulation; the bar only needs them to be near.
_SHARES: Mapping[str, float] = {
    "train": 0.82,
    "share_keys": 0.02,
    "upload": 0.04,
    "confirm": 0.01,
    "unmask": 0.02,
    "evaluate": 0.09,
}


def print_evaluation(
    console: Console, evaluation: Mapping[str, Any], *, title: str = "Evaluation", tokens: bool = True
) -> None:
    """Print strict entity scores, and the token-level ones where they are given.

    Args:
        console: Where to print.
        evaluation: `micro`, `macro`, `weighted` (precision, recall, f1, support), `per_entity` by type,
            and `token` by tag.
        title: Above the table.
        tokens: Whether to print the token-level table, `O` included.
    """
    per_entity: Mapping[str, Scores] = evaluation.get("per_entity", {})
    table = _scores_table(f"{title}: entities (strict)", "Entity")
    for name in sorted(per_entity, key=lambda entity: (-per_entity[entity]["support"], entity)):
        _add_scores(table, escape(name), per_entity[name])
    table.add_section()
    for average in ("micro", "macro", "weighted"):
        if average in evaluation:
            _add_scores(
                table, f"{average} average", evaluation[average], "bold" if average == "micro" else ""
            )
    console.print(table)
    if tokens and evaluation.get("token"):
        token_table = _scores_table(f"{title}: tokens", "Tag")
        for tag, scores in evaluation["token"].items():
            _add_scores(token_table, escape(tag), scores)
        console.print(token_table)


def _scores_table(title: str, first: str) -> Table:
    """Return an empty table with a column for each score."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first)
    for heading in ("Precision", "Recall", "F1", "Support"):
        table.add_column(heading, justify="right")
    return table


def _add_scores(table: Table, name: str, scores: Scores, style: str = "") -> None:
    """Add one row of scores."""
    numbers = [f"{scores[key]:.4f}" for key in ("precision", "recall", "f1")]
    table.add_row(name, *numbers, f"{int(scores['support']):,}", style=style)


class RoundProgress:
    """Shows round, site, stage and time left; without a terminal, one line for each finished round.

    Use it as a context manager, and call `start_round`, then for each stage `start_stage`,
    `site_done` and perhaps `site_progress`, then `end_round`.

    Args:
        console: Where to show it.
        rounds: How many rounds the run has.
        stages: The stages of a round in order, each with its share of a round's time, above 0. A stage that
            is not named leaves the bar where it is.
        clock: Seconds that only grow; replaced in tests.
    """

    def __init__(
        self,
        console: Console,
        rounds: int,
        *,
        stages: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing is shown before the context begins."""
        self._console, self._rounds, self._clock = console, rounds, clock
        self._shares = dict(stages) if stages else _SHARES
        self._round, self._stage, self._sites = 0, "", 0
        self._done: dict[str, float] = {}
        self._reached = 0.0
        self._round_began = clock()
        self._finished: list[float] = []
        self._progress = Progress(
            TextColumn("[bold]{task.description}", markup=True),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID = self._progress.add_task("starting", total=1.0, left="")

    def __enter__(self) -> Self:
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the bar as it stands."""
        self._progress.stop()

    def start_round(self, round_number: int, *, sites: int) -> None:
        """Begin a round with so many sites."""
        self._round, self._sites = round_number, sites
        self._round_began, self._reached = self._clock(), 0.0
        self.start_stage(next(iter(self._shares)))

    def start_stage(self, stage: str, *, sites: int | None = None) -> None:
        """Begin a stage; `sites` is how many answers it waits for, by default the round's."""
        self._stage, self._done = stage, {}
        self._sites = self._sites if sites is None else sites
        self._refresh(f"0/{self._sites} sites" if self._sites else "")

    def site_done(self, site: str) -> None:
        """Count one site's answer in the current stage."""
        self._done[site] = 1.0
        answered = sum(part >= 1.0 for part in self._done.values())
        self._refresh(f"{answered}/{self._sites} sites, last {escape(site)}")

    def site_progress(self, site: str, fraction: float) -> None:
        """Say how far a site is in the current stage, 0 to 1, where that is known (in simulation)."""
        self._done[site] = max(self._done.get(site, 0.0), min(fraction, 0.999))
        self._refresh(escape(site))

    def end_round(self, metrics: Mapping[str, Any]) -> None:
        """End the round and print its line.

        Args:
            metrics: Of these, `micro_f1`, `train_loss`, `participants` and `invited` are shown.
        """
        seconds = self._clock() - self._round_began
        self._finished.append(seconds)
        self._stage = ""
        self._refresh("")
        line = "  ".join([f"round {self._round}/{self._rounds}", *_told(metrics), f"{seconds:.1f} s"])
        left = self.seconds_left()
        # soft_wrap: in a log, a round is one line whatever the width.
        self._console.print(
            line + (f"  {_duration(left)} left" if left else ""), soft_wrap=True, highlight=False
        )

    def fraction(self) -> float:
        """Return how much of the run is done, 0 to 1."""
        if not self._round:
            return 0.0
        inside = 1.0 if not self._stage else self._round_fraction()
        return min(1.0, (self._round - 1 + inside) / self._rounds)

    def seconds_left(self) -> float | None:
        """Return the estimated time left, or None before anything can be said."""
        remaining = self._rounds - self._round
        if self._finished:
            typical = sum(self._finished) / len(self._finished)
            spent = self._clock() - self._round_began if self._stage else typical
            return remaining * typical + max(0.0, typical - spent)
        done = self._round_fraction() if self._stage else 0.0
        if done < 0.05:
            return None
        return (self._clock() - self._round_began) * ((remaining + 1) / done - 1)

    def _round_fraction(self) -> float:
        """Return how much of the current round is done, by its stages' shares and its sites' answers."""
        names = list(self._shares)
        if self._stage in names:
            before = sum(self._shares[name] for name in names[: names.index(self._stage)])
            answered = min(1.0, sum(self._done.values()) / self._sites) if self._sites else 0.0
            now = (before + answered * self._shares[self._stage]) / sum(self._shares.values())
            # A stage that is tried again does not take the bar back.
            self._reached = max(self._reached, now)
        return self._reached

    def _refresh(self, detail: str) -> None:
        """Redraw the bar with what is going on."""
        parts = [f"round {self._round}/{self._rounds}", self._stage.replace("_", " "), detail]
        left = self.seconds_left()
        self._progress.update(
            self._task,
            description=" · ".join(part for part in parts if part),
            completed=self.fraction(),
            left="" if left is None else f"{_duration(left)} left",
        )


def _told(metrics: Mapping[str, Any]) -> list[str]:
    """Return the parts of a round's line that its metrics give."""
    parts = []
    if metrics.get("micro_f1") is not None:
        parts.append(f"F1 {metrics['micro_f1']:.4f}")
    if metrics.get("train_loss") is not None:
        parts.append(f"loss {metrics['train_loss']:.4f}")
    if metrics.get("participants") is not None:
        parts.append(f"{metrics['participants']}/{metrics.get('invited', metrics['participants'])} sites")
    return parts


def _duration(seconds: float) -> str:
    """Return seconds as a person says them."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
