"""`progress.json`: what a run tells of itself, how it is stopped, and that no text of records is in it or the log."""

from __future__ import annotations

import contextlib
import json
import logging

import pytest

from common.errors import DataError, RoundError
from server.json_log import json_log
from server.processes import Process
from server.run_progress import PROGRESS, ProgressWatch, RunStopped, read_progress, request_stop
from server.watch import ConsoleWatch

CANARY = "Mrs Canary has pneumonia"


@pytest.fixture
def watch(tmp_path):
    return ProgressWatch(tmp_path, 3, ConsoleWatch(None), clock=lambda: 0.0)


def metrics(server_round):
    return {"round": server_round, "sites": ["a"], "seconds": 1.0}


def one_round(watch, server_round, stop=None):
    """A run that is over after a round, which somebody may have asked for."""
    with watch:
        watch.on_round(server_round, 3)
        if stop is not None:
            request_stop(stop)
        watch.on_stage("train", ["a"])
        watch.on_metrics(metrics(server_round))


def test_it_says_what_each_site_does(watch, tmp_path):
    with watch:
        assert read_progress(tmp_path).process == Process.this()
        watch.on_wait(1, 2)
        assert (read_progress(tmp_path).present, read_progress(tmp_path).state) == (1, "waiting")
        watch.on_round(2, 3)
        watch.on_stage("upload", ["a", "b", "c"])
        watch.on_reply("upload", "a", None)
        # A thousand replies make no thousand files; a refusal and the last reply are written at once.
        assert read_progress(tmp_path).sites == {"a": "asked", "b": "asked", "c": "asked"}
        watch.on_reply("upload", "b", "refused-policy")
        assert read_progress(tmp_path).sites == {"a": "answered", "b": "refused-policy", "c": "asked"}
        watch.on_reply("upload", "c", None)
        found = read_progress(tmp_path)
        assert (found.round, found.rounds, found.stage, found.sites["c"]) == (2, 3, "upload", "answered")
        watch.on_metrics(metrics(2))
    assert read_progress(tmp_path).state == "finished"


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (RoundError("Two sites are missing."), "failed", "Two sites are missing."),
        (DataError(CANARY, path="test.jsonl", line=3), "failed", "bad-data in test.jsonl, line 3"),
        (ValueError(CANARY), "crashed", "ValueError"),
        (SystemExit(1), "crashed", "SystemExit"),
    ],
)
def test_how_it_ended_is_written_without_foreign_text(watch, tmp_path, error, state, message):
    with contextlib.suppress(BaseException), watch:
        raise error
    found = read_progress(tmp_path)
    assert (found.state, found.message, found.ended) == (state, message, True)
    assert CANARY not in (tmp_path / PROGRESS).read_text()


def test_a_request_to_stop_is_met_after_the_round(watch, tmp_path):
    with pytest.raises(RunStopped, match="in round 1 of 3; everything before is kept"):
        one_round(watch, 1, stop=tmp_path)
    assert read_progress(tmp_path).state == "stopped"
    # The next attempt begins without it.
    one_round(watch, 2)


def test_a_request_to_stop_is_met_while_sites_are_missing(watch, tmp_path):
    watch.__enter__()
    request_stop(tmp_path)
    with pytest.raises(RunStopped):
        watch.on_wait(0, 2)


def test_the_last_round_ends_the_run_as_planned(watch, tmp_path):
    one_round(watch, 3, stop=tmp_path)
    assert read_progress(tmp_path).state == "finished"


def test_a_torn_or_foreign_file_is_no_progress(tmp_path):
    for text in ("", "{", "[]", '{"process": 3}'):
        (tmp_path / PROGRESS).write_text(text)
        assert read_progress(tmp_path) is None


def test_the_log_is_json_without_foreign_text(tmp_path):
    log = logging.getLogger("server.rounds")
    with json_log(tmp_path / "log.jsonl"):
        log.info("Round %d begins.", 1)
        logging.getLogger("transformers").error(CANARY)
        try:
            raise ValueError(CANARY)
        except ValueError:
            log.exception("The reply of node %d could not be pulled", 7)
        try:
            raise RoundError("Round 2 ended with 1 of at least 2 sites.")
        except RoundError:
            log.exception("The round failed")
    log.error("after the end")
    text = (tmp_path / "log.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["message"] for line in lines] == [
        "Round 1 begins.",
        "The reply of node 7 could not be pulled",
        "The round failed",
    ]
    assert (lines[1]["error"], lines[2]["error"]) == (
        "ValueError",
        "Round 2 ended with 1 of at least 2 sites.",
    )
    assert set(lines[0]) == {"time", "level", "room", "message"}
    assert CANARY not in text
    assert (tmp_path / "log.jsonl").stat().st_mode & 0o077 == 0
