"""What a site must remember about secure aggregation across restarts: which answers it has given.

The guard holds numbers, nonces and a digest of the update, never a key, a share or an update. Every entry
is on the disk before the answer that it stands for leaves the site.

Formal guarantees, for all processes that share the file:
    *Rounds only grow*: after round r, no attempt of an earlier round begins.
    *Attempts only grow*: within a round, an attempt number begins once, in increasing order.
    *Nonces are never reused*, whatever the round.
    *One answer per stage* of an attempt.
    *After `confirm`* no further attempt of that round begins: its sum may have been opened.
    *Before `confirm`* a retry masks the same update, so that two cohorts' masked vectors hold one value.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from common.errors import FedwardError, InputError, ProtocolRefused

_SCHEMA = """
CREATE TABLE IF NOT EXISTS attempts (
    round INTEGER NOT NULL, attempt INTEGER NOT NULL, nonce BLOB NOT NULL UNIQUE, PRIMARY KEY (round, attempt)
) STRICT;
CREATE TABLE IF NOT EXISTS answers (
    round INTEGER NOT NULL, attempt INTEGER NOT NULL, stage TEXT NOT NULL, PRIMARY KEY (round, attempt, stage)
) STRICT;
CREATE TABLE IF NOT EXISTS updates (round INTEGER PRIMARY KEY, digest BLOB NOT NULL) STRICT;
"""

_CONFIRM = "confirm"


class RoundGuard:
    """The record of one site's answers under one plan, in `rounds.sqlite` of its spool folder.

    Args:
        folder: The spool folder of this plan; made with mode 0700 where absent.

    Raises:
        InputError: The file cannot be opened, or others have access to it.
    """

    def __init__(self, folder: Path) -> None:
        """Open or make the record."""
        self._path = folder / "rounds.sqlite"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600))
        except OSError as error:
            raise InputError(f"{self._path}: the round guard cannot be opened ({error.strerror}).") from None
        mode = stat.S_IMODE(self._path.stat().st_mode)
        if mode & 0o077:
            raise InputError(
                f"{self._path}: the round guard has mode {mode:04o}; others must not have access. Run "
                f"'chmod 600 {self._path}'."
            )
        with self._transaction() as database:
            for statement in _SCHEMA.split(";"):
                database.execute(statement)

    def begin(self, round_number: int, attempt: int, nonce: bytes) -> None:
        """Record that an attempt begins.

        Raises:
            ProtocolRefused: The round or attempt is not new, the nonce was used, or the round's `confirm`
                was answered.
        """
        with self._transaction() as database:
            last = database.execute("SELECT MAX(round) FROM attempts").fetchone()[0]
            if last is not None and round_number < last:
                raise ProtocolRefused(
                    f"Round {round_number} was asked for after round {last}; rounds only grow."
                )
            if self._answered(database, round_number, _CONFIRM):
                raise ProtocolRefused(
                    f"Round {round_number} was confirmed already; no further attempt is answered, for its "
                    f"sum may have been opened. Go on with round {round_number + 1}."
                )
            tried = database.execute(
                "SELECT MAX(attempt) FROM attempts WHERE round = ?", (round_number,)
            ).fetchone()[0]
            if tried is not None and attempt <= tried:
                raise ProtocolRefused(
                    f"Attempt {attempt} of round {round_number} was asked for after attempt {tried}; "
                    f"attempts only grow."
                )
            if database.execute("SELECT 1 FROM attempts WHERE nonce = ?", (nonce,)).fetchone():
                raise ProtocolRefused(
                    f"The nonce of round {round_number}, attempt {attempt} was used before."
                )
            database.execute("INSERT INTO attempts VALUES (?, ?, ?)", (round_number, attempt, nonce))

    def answer(self, round_number: int, attempt: int, stage: str) -> None:
        """Record that a stage is answered; call it before the answer leaves.

        Raises:
            ProtocolRefused: The stage was answered, the attempt never began here, or a newer one did.
        """
        with self._transaction() as database:
            newest = database.execute(
                "SELECT round, attempt FROM attempts ORDER BY 1 DESC, 2 DESC"
            ).fetchone()
            if newest != (round_number, attempt):
                raise ProtocolRefused(
                    f"Attempt {attempt} of round {round_number} is not this site's newest attempt."
                )
            try:
                database.execute("INSERT INTO answers VALUES (?, ?, ?)", (round_number, attempt, stage))
            except sqlite3.IntegrityError:
                raise ProtocolRefused(
                    f"The stage {stage} of round {round_number}, attempt {attempt} was answered before."
                ) from None

    def pin_update(self, round_number: int, digest: bytes) -> None:
        """Record the round's update by its digest, or check that it is the one recorded.

        Raises:
            ProtocolRefused: A retry would mask another update than the attempt before it.
        """
        with self._transaction() as database:
            database.execute("INSERT OR IGNORE INTO updates VALUES (?, ?)", (round_number, digest))
            kept = database.execute("SELECT digest FROM updates WHERE round = ?", (round_number,)).fetchone()[
                0
            ]
            if kept != digest:
                raise ProtocolRefused(
                    f"A retry of round {round_number} must mask the update of the first "
                    f"attempt, and this is another."
                )

    @staticmethod
    def _answered(database: sqlite3.Connection, round_number: int, stage: str) -> bool:
        """Whether some attempt of the round answered the stage."""
        found = database.execute("SELECT 1 FROM answers WHERE round = ? AND stage = ?", (round_number, stage))
        return found.fetchone() is not None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One exclusive transaction, flushed to the disk when it ends without an error."""
        try:
            with closing(sqlite3.connect(self._path, timeout=30.0, isolation_level=None)) as database:
                database.execute("PRAGMA synchronous = FULL")
                database.execute("BEGIN IMMEDIATE")
                with database:
                    yield database
        except sqlite3.Error as error:
            raise FedwardError(
                f"{self._path}: the round guard cannot be read or written ({error})."
            ) from None
