"""The log: one JSON object a line, and no sentence that could quote a record."""

import json
import logging
import stat
import warnings

import pytest

from client.site_log import WITHHELD, JsonLines, start_logging
from common.errors import DataError

SECRET = "Mrs Example has gout"


@pytest.fixture
def log(tmp_path):
    """A function that returns the lines of the log, after it was started; everything is undone afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    start_logging(site="st-mary", process="agent", file=tmp_path / "log" / "agent.log")
    yield lambda: [
        json.loads(line) for line in (tmp_path / "log" / "agent.log").read_text("utf-8").splitlines()
    ]
    logging.captureWarnings(False)
    for handler in root.handlers:
        handler.close()
    root.handlers[:], root.level = handlers, level


def test_our_sentences_are_logged(log, tmp_path):
    logging.getLogger("client.site").warning("Round %d of %s.", 3, "st-mary")
    (line,) = log()
    assert line["message"] == "Round 3 of st-mary."
    assert {"time", "level", "site", "process", "logger"} <= line.keys()
    assert stat.S_IMODE((tmp_path / "log" / "agent.log").stat().st_mode) == 0o600


def test_the_sentences_of_others_are_left_out(log):
    logging.getLogger("transformers").warning("Token indices of %r are too long", SECRET)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(SECRET, UserWarning, stacklevel=1)
    lines = log()
    assert [line["message"] for line in lines] == [WITHHELD, WITHHELD]
    assert SECRET not in json.dumps(lines)
    assert all("at" in line for line in lines)


def test_the_texts_of_exceptions_are_left_out_and_ours_are_not(log):
    try:
        try:
            raise ValueError(SECRET)
        except ValueError as error:
            raise DataError("The line is not usable.") from error
    except DataError:
        logging.getLogger("client.agent").exception("train failed")
    (line,) = log()
    assert SECRET not in json.dumps(line)
    assert [one["class"] for one in line["error"]] == ["DataError", "ValueError"]
    assert line["error"][0]["message"] == "The line is not usable."
    assert line["error"][0]["at"][0].startswith("test_site_log.py:")


def test_handlers_of_other_libraries_are_taken_away(tmp_path):
    other = logging.getLogger("some_library")
    other.addHandler(logging.StreamHandler())
    other.propagate = False
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        start_logging(site="a", process="agent", file=tmp_path / "a.log")
        assert other.handlers == []
        assert other.propagate
    finally:
        logging.captureWarnings(False)
        root.handlers[-1].close()
        root.handlers[:], root.level = handlers, level


def test_a_line_is_one_line():
    record = logging.LogRecord("client.x", logging.INFO, "x.py", 1, "two\nlines", (), None)
    assert "\n" not in JsonLines(site="a", process="agent").format(record)
