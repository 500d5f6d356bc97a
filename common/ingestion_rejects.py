"""Records that cannot be read, when the rest is to be read all the same.

A reader that is given an `OnReject` reports what it leaves out and goes on; without one it raises at the first.
A reject says where and why in fixed words. It never holds text of a record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """One record, line or file that was left out.

    Attributes:
        path: The file.
        line: The 1-based line where it begins, where one is known.
        note_id: The record's id, where it has one.
        reason: A fixed word of letters and hyphens.
    """

    path: Path | None
    line: int | None
    note_id: str | None
    reason: str


OnReject = Callable[[Reject], None]


def refuse(error: DataError, on_reject: OnReject | None, *, note_id: str | None = None) -> None:
    """Report what an error is about, or raise the error where nobody listens.

    Raises:
        DataError: `on_reject` is None.
    """
    if on_reject is None:
        raise error
    on_reject(Reject(path=error.path, line=error.line, note_id=note_id, reason=error.reason))
