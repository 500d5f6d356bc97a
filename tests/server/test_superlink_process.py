"""The SuperLink's database waits for a lock instead of failing."""

from __future__ import annotations

import sqlite3

import pytest
from flwr.supercore import sql_mixin

from server.superlink_process import BUSY_MILLISECONDS, wait_for_locks


def busy_timeout(path):
    """Return the milliseconds that a connection of Flower's database waits."""
    connection = sqlite3.connect(path)
    try:
        sql_mixin._set_sqlite_pragmas(connection, None)
        return connection.execute("PRAGMA busy_timeout").fetchone()[0]
    finally:
        connection.close()


def test_flowers_database_waits_for_a_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", sql_mixin.SQLITE_PRAGMAS)
    assert busy_timeout(tmp_path / "a.db") < BUSY_MILLISECONDS, "The module can go."
    wait_for_locks()
    assert busy_timeout(tmp_path / "a.db") == BUSY_MILLISECONDS
    assert dict(sql_mixin.SQLITE_PRAGMAS)["journal_mode"] == "WAL"


def test_a_release_that_keeps_it_elsewhere_is_noticed(monkeypatch):
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", (("journal_mode", "WAL"),))
    with pytest.raises(RuntimeError, match="sets no busy_timeout"):
        wait_for_locks()
