"""The server's log as JSON lines: our own sentences, never an exception's text that could quote a note."""

from __future__ import annotations

import contextlib
import json
import logging
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from common.errors import DataError, FedwardError

ROOMS = ("server", "common")
"""The loggers that are kept: our own. Other libraries quote what they were given."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, room and message; for an exception, its class and place.

    The text of an exception is kept only where fedward raised it on purpose: such texts name fields and files.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "room": record.name,
            "message": record.getMessage(),
        }
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            line["error"] = told(error)
            line["at"] = [
                f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)
            ][-8:]
        return json.dumps(line, ensure_ascii=False)


def told(error: BaseException) -> str:
    """Return what may be said about an error: fedward's own sentence, or the class of any other.

    What is wrong with a file of records is told by its code and place alone, since a parser may have quoted the line.
    """
    if isinstance(error, DataError):
        return f"{error.code} in {error.place}" if error.place else error.code
    return str(error) if isinstance(error, FedwardError) else type(error).__name__


@contextlib.contextmanager
def json_log(path: Path, *, level: int = logging.INFO) -> Iterator[None]:
    """Append the log of fedward's own rooms to a file while the block lasts.

    Args:
        path: The file; made with mode 0600.
        level: The least level that is kept.
    """
    path.touch(mode=0o600)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(JsonFormatter())
    handler.setLevel(level)
    loggers = [logging.getLogger(name) for name in ROOMS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, old in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(old)
        handler.close()
