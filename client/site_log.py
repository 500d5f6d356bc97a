"""A site's log: one JSON object a line, and no text of records in any of them.

What fedward says is safe by its own rule: its sentences name fields and files, never note text. What others
say is not known, so that their sentences, and the texts of their exceptions, are left out; where it happened is
what remains.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path

from common.errors import FedwardError, InputError

OURS = ("client", "common", "server", "simulation")
"""The packages whose sentences are logged."""

WITHHELD = "(the sentence of another library is left out)"


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON.

    Args:
        site: The site's name, in every line.
        process: What runs: `agent` or `supervisor`.
    """

    def __init__(self, *, site: str, process: str) -> None:
        super().__init__()
        self._always = {"site": site, "process": process}

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        ours = record.name.partition(".")[0] in OURS
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            **self._always,
            "logger": record.name,
            "message": record.getMessage() if ours else WITHHELD,
        }
        if not ours:
            line["at"] = f"{record.module}:{record.lineno}"
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = describe_exception(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False)


def describe_exception(error: BaseException) -> list[dict[str, object]]:
    """Return an exception and its causes: their classes and where they were raised, and no text of theirs.

    A sentence of fedward's own exceptions is there too.
    """
    chain: list[dict[str, object]] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        frames = traceback.extract_tb(current.__traceback__)
        one: dict[str, object] = {
            "class": type(current).__qualname__,
            "at": [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames],
        }
        if isinstance(current, FedwardError):
            one["message"] = str(current)
        chain.append(one)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return chain


def start_logging(*, site: str, process: str, file: Path | None = None) -> None:
    """Send every log line of this process to a file, or to standard error.

    Args:
        site: The site's name.
        process: What runs.
        file: Appended to, mode 0600; a rotated file is followed. None for standard error.

    Raises:
        InputError: The file cannot be opened.
    """
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handler = _PrivateFile(file, encoding="utf-8")
        except OSError as error:
            raise InputError(f"{file}: the log cannot be written ({error.strerror}).") from None
    handler.setFormatter(JsonLines(site=site, process=process))
    logging.captureWarnings(True)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for package in OURS:
        logging.getLogger(package).setLevel(logging.INFO)
    # Some libraries have handlers of their own, which would print what is left out here.
    for name in list(logging.root.manager.loggerDict):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


class _PrivateFile(logging.handlers.WatchedFileHandler):
    """A log file that its owner alone may read."""

    def _open(self):  # type: ignore[no-untyped-def]  # The base class has no types.
        os.close(os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        return super()._open()
