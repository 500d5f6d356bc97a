"""The ledger's SQLite file: an append-only table of chain links, on the disk before a call returns.

The one place that speaks SQL. What SQLite reports becomes a `LedgerError` here.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from client.witness import require_private
from common.errors import LedgerError
from common.files import sync
from common.hash_chain import Link

_SCHEMA = """
CREATE TABLE entries (
    sequence INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    time TEXT NOT NULL,
    body TEXT NOT NULL,
    previous TEXT NOT NULL UNIQUE,
    hash TEXT NOT NULL UNIQUE,
    signature TEXT NOT NULL
);
CREATE TRIGGER entries_are_final BEFORE UPDATE ON entries
    BEGIN SELECT RAISE(ABORT, 'ledger entries are final'); END;
CREATE TRIGGER entries_stay BEFORE DELETE ON entries
    BEGIN SELECT RAISE(ABORT, 'ledger entries stay'); END;
PRAGMA user_version = 1;
"""
_COLUMNS = "sequence, kind, time, body, previous, hash, signature"
_LOCK_SECONDS = 5.0


class LedgerStore:
    """An append-only file of links.

    A connection lasts for one call, so that between calls the file is whole on its own and can be copied.

    Args:
        path: The database file.
    """

    def __init__(self, path: Path) -> None:
        """Name the file; nothing is opened yet."""
        self.path = path

    def create(self, first: Link) -> None:
        """Make the file, mode 0600, with its first entry.

        Raises:
            LedgerError: The file is there already or cannot be written.
        """
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        os.close(handle)
        draft = LedgerStore(Path(name))
        try:
            with draft._transaction() as connection:
                # A trigger's body holds "; END": statements end at the end of a line only.
                for statement in _SCHEMA.split(";\n"):
                    connection.execute(statement)
                _insert(connection, first)
            # The whole file gets its name at once, and never in the place of another.
            os.link(name, self.path)
            sync(self.path.parent)
        except FileExistsError as error:
            raise LedgerError(f"{self.path}: a ledger is there already; nothing was changed.") from error
        except OSError as error:
            raise LedgerError(f"{self.path}: the ledger cannot be made ({error.strerror}).") from error
        finally:
            with contextlib.suppress(OSError):
                os.unlink(name)

    def read(self) -> list[Link]:
        """Return every link, as stored; nothing is verified here.

        Raises:
            LedgerError: The file is not a ledger, is damaged, can be reached by others, or is locked.
        """
        if not self.path.exists():
            return []
        require_private(self.path)
        with self._translated(), contextlib.closing(self._connect()) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, 1):
                raise LedgerError(
                    f"{self.path}: the ledger has format {version}, and this version of fedward knows "
                    "format 1; use the version that wrote it."
                )
            rows = connection.execute(f"SELECT {_COLUMNS} FROM entries ORDER BY sequence").fetchall()  # noqa: S608
        names = _COLUMNS.split(", ")
        return [Link(**dict(zip(names, row, strict=True))) for row in rows]

    def append(self, link: Link) -> None:
        """Add a link after the one it names, and return once it is on the disk.

        Raises:
            LedgerError: The disk is full, the file is locked, or another entry got there first.
        """
        with self._transaction() as connection:
            (last,) = connection.execute("SELECT max(sequence) FROM entries").fetchone()
            if last != link.sequence - 1:
                raise LedgerError(
                    f"{self.path}: another process wrote to the ledger; nothing was charged. "
                    "Run one agent for one ledger."
                )
            _insert(connection, link)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the file's write lock; commit at the end, or leave nothing behind."""
        with self._translated(), contextlib.closing(self._connect()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise

    def _connect(self) -> sqlite3.Connection:
        """Return a connection that reports success only after the disk has everything."""
        # mode=rw: a file that vanished must not come back empty.
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=rw", uri=True, timeout=_LOCK_SECONDS, isolation_level=None
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA trusted_schema = OFF")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what SQLite reports into one sentence that says what to do."""
        try:
            yield
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path}: {_explain(error)}") from error


def _insert(connection: sqlite3.Connection, link: Link) -> None:
    """Insert one link."""
    connection.execute(
        f"INSERT INTO entries ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
        (link.sequence, link.kind, link.time, link.body, link.previous, link.hash, link.signature),
    )


def _explain(error: sqlite3.Error) -> str:
    """Return what happened and what to do, without SQL."""
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return (
            f"the ledger is locked by another process for more than {_LOCK_SECONDS:g} s; nothing was "
            "charged. Stop the other agent or close the program that has the file open, then try again."
        )
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
        return (
            f"the ledger could not be written ({error}); nothing was charged and nothing may be trained. "
            "Make room on the disk, then try again."
        )
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH")):
        return f"the ledger cannot be opened for writing ({error}); check the file's owner and folder."
    return (
        f"the file is not a whole ledger ({error}); restore its newest copy. Its witness tells how many "
        "entries that copy must have."
    )
