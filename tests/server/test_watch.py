"""The operator's watch: it says what is missing and who declined, once each."""

import io

import pytest
from rich.console import Console

from server.watch import ConsoleWatch, shown_metrics

ROW = {"round": 1, "sites": ["a", "b"], "seconds": 2.0, "train_loss": 0.5, "devel": {"micro": {"f1": 0.25}}}


@pytest.fixture
def seen():
    return io.StringIO()


@pytest.fixture
def watch(seen):
    return ConsoleWatch.on(Console(file=seen, width=40), 1)


def test_a_round_is_one_line(watch, seen):
    with watch:
        watch.on_round(1, 1)
        watch.on_stage("train", ["a", "b"])
        watch.on_reply("train", "a", None)
        watch.on_metrics(ROW)
    (line,) = seen.getvalue().splitlines()
    assert "round 1/1" in line
    assert "0.25" in line


def test_waiting_is_said_once_for_each_number(watch, seen):
    for present in (1, 1, 2, 2):
        watch.on_wait(present, 3)
    assert seen.getvalue().splitlines() == [
        "Waiting for sites: 1 of at least 3 are there.",
        "Waiting for sites: 2 of at least 3 are there.",
    ]
    watch.on_round(2, 2)
    watch.on_wait(2, 3)
    assert len(seen.getvalue().splitlines()) == 3


def test_a_refusal_is_said_with_its_code(watch, seen):
    watch.on_reply("upload", "st-mary", "refused-policy")
    assert seen.getvalue() == "st-mary did not take part in upload: refused-policy.\n"


def test_metrics_without_a_development_set():
    assert shown_metrics({"round": 1, "sites": [], "seconds": 1.0})["micro_f1"] is None
