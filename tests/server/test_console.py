"""The tables and the progress say what they should, with and without a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from server.console import RoundProgress, print_evaluation


def scores(f1: float, support: int) -> dict[str, float]:
    return {"precision": f1, "recall": f1, "f1": f1, "support": support}


EVALUATION = {
    "micro": scores(0.8514, 1987),
    "macro": scores(0.5, 1987),
    "weighted": scores(0.75, 1987),
    "per_entity": {"Dose": scores(0.25, 27), "Disease": scores(0.875, 960), "[bold]": scores(0.125, 1000)},
    "token": {"O": scores(0.99, 40211), "B-Disease": scores(0.9, 960)},
}


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=100, force_terminal=False)


def printed(console: Console) -> str:
    return console.file.getvalue()


def test_entities_come_by_support_and_then_the_averages(console):
    print_evaluation(console, EVALUATION, title="Test set")
    text = printed(console)
    names = [
        "[bold]",
        "Disease",
        "Dose",
        "micro average",
        "macro average",
        "weighted average",
        "O",
        "B-Disease",
    ]
    positions = [text.index(f"│ {name} ") for name in names]
    assert positions == sorted(positions)
    assert "0.8514" in text
    assert "40,211" in text
    assert "Test set: entities (strict)" in text


def test_tokens_can_be_left_out(console):
    print_evaluation(console, EVALUATION, tokens=False)
    assert "B-Disease" not in printed(console)


def test_an_evaluation_without_tokens_prints_one_table(console):
    print_evaluation(console, {key: value for key, value in EVALUATION.items() if key != "token"})
    assert "tokens" not in printed(console)


def run_round(progress: RoundProgress, clock: Clock, number: int, seconds: float) -> None:
    progress.start_round(number, sites=2)
    for site in ("north", "south"):
        clock.now += seconds / 2
        progress.site_done(site)
    progress.start_stage("evaluate", sites=0)
    progress.end_round({"micro_f1": 0.5, "train_loss": 0.25, "participants": 2, "invited": 3})


def test_without_a_terminal_each_round_is_one_line(console):
    clock = Clock()
    with RoundProgress(console, 3, clock=clock) as progress:
        for number in (1, 2, 3):
            run_round(progress, clock, number, 40.0)
    assert printed(console).splitlines() == [
        "round 1/3  F1 0.5000  loss 0.2500  2/3 sites  40.0 s  1 min 20 s left",
        "round 2/3  F1 0.5000  loss 0.2500  2/3 sites  40.0 s  40 s left",
        "round 3/3  F1 0.5000  loss 0.2500  2/3 sites  40.0 s",
    ]


def test_a_round_without_metrics_has_its_line_too(console):
    with RoundProgress(console, 1, clock=Clock()) as progress:
        progress.start_round(1, sites=1)
        progress.end_round({})
    assert printed(console) == "round 1/1  0.0 s\n"


def test_a_terminal_sees_round_stage_site_and_time_left():
    console = Console(file=io.StringIO(), width=160, force_terminal=True, color_system=None)
    clock = Clock()
    with RoundProgress(console, 4, clock=clock) as progress:
        run_round(progress, clock, 1, 10.0)
        progress.start_round(2, sites=2)
        clock.now += 5.0
        progress.site_done("north [x]")
    text = printed(console)
    assert "round 2/4 · train · 1/2 sites, last north [x]" in text
    assert "25 s left" in text


def test_the_bar_only_grows():
    clock = Clock()
    console = Console(file=io.StringIO(), force_terminal=False)
    progress = RoundProgress(console, 2, stages={"train": 3.0, "upload": 1.0}, clock=clock)
    seen = [progress.fraction()]
    progress.start_round(1, sites=2)
    steps = [
        lambda: progress.site_progress("a", 0.5),
        lambda: progress.site_progress("a", 0.25),
        lambda: progress.site_done("a"),
        lambda: progress.start_stage("upload"),
        lambda: progress.site_done("a"),
        lambda: progress.start_stage("train"),
        lambda: progress.start_stage("no such stage"),
        lambda: progress.end_round({}),
    ]
    for step in steps:
        step()
        seen.append(progress.fraction())
    assert seen == sorted(seen)
    assert seen[1] == pytest.approx(0.5 * 0.75 * 0.25)
    assert seen[3] == pytest.approx(0.5 * 0.75 * 0.5)
    assert seen[-1] == 0.5


def test_time_left_is_estimated_inside_the_first_round():
    clock = Clock()
    progress = RoundProgress(Console(file=io.StringIO()), 2, stages={"train": 1.0}, clock=clock)
    progress.start_round(1, sites=2)
    assert progress.seconds_left() is None
    clock.now = 10.0
    progress.site_done("a")
    assert progress.seconds_left() == pytest.approx(30.0)
