"""Every command ends with 0, or with one sentence and 1 or 2, and never with a traceback."""

from __future__ import annotations

import os

import click
import pytest
import typer

from common.command import run_command
from common.errors import DataError, PlanError, RoundError


def ends(call, error):
    app = typer.Typer()

    @app.command()
    def command() -> None:
        if error is not None:
            raise error

    return call(lambda: run_command(app))


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (None, 0, ""),
        (PlanError("plan.toml: rounds is 0."), 2, "plan.toml: rounds is 0.\n"),
        (DataError("is empty.", path="a.tsv", line=3), 2, "a.tsv, line 3: is empty.\n"),
        (RoundError("Round 2 failed."), 1, "Round 2 failed.\n"),
        (PlanError("[bold]markup[/bold] stays."), 2, "[bold]markup[/bold] stays.\n"),
        (KeyboardInterrupt(), 130, "Stopped. A run that was under way can be continued with --resume.\n"),
        (click.Abort(), 130, "Stopped. A run that was under way can be continued with --resume.\n"),
        (OSError(28, "No space left on device", "/x/y"), 1, "/x/y: No space left on device.\n"),
        (OSError("odd"), 1, "A file: OSError.\n"),
        (typer.Exit(3), 3, ""),
    ],
    ids=str,
)
def test_errors_become_sentences(call, error, code, sentence):
    assert ends(call, error) == (code, "", sentence)


def test_a_bug_is_not_hidden_behind_a_sentence(call):
    with pytest.raises(ZeroDivisionError):
        ends(call, ZeroDivisionError())


def test_a_wrong_option_is_a_usage_error(call):
    app = typer.Typer()
    app.command()(lambda: None)
    code, out, err = call(lambda: run_command(app), "--nonsense")
    assert (code, out) == (2, "")
    assert "--nonsense" in err
    assert "Traceback" not in err


def test_flower_neither_reports_nor_updates(call, monkeypatch):
    monkeypatch.setenv("FLWR_DISABLE_UPDATE_CHECK", "own choice")
    monkeypatch.delenv("FLWR_TELEMETRY_ENABLED", raising=False)
    ends(call, None)
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
    assert os.environ["FLWR_DISABLE_UPDATE_CHECK"] == "own choice"
