"""Flower's SuperLink as `fedward-server up` runs it: one whose database waits for a lock (adapter, flwr 1.42).

Flower's database waits 5 s for a lock and then answers 500, and a SuperNode that is answered 500 once never asks
again. Deleting a large model's message holds the lock for longer than that on an ordinary disk. Flower has no
option for the wait, so the one constant is changed here before the SuperLink starts.
"""

from __future__ import annotations

from typing import Final

from flwr.supercore import sql_mixin

BUSY_MILLISECONDS: Final = 120_000
"""How long a request waits for the database."""


def wait_for_locks() -> None:
    """Let every connection that Flower's database opens from now on wait for a lock.

    Raises:
        RuntimeError: This release of Flower keeps the setting elsewhere.
    """
    pragmas: dict[str, str] = dict(vars(sql_mixin).get("SQLITE_PRAGMAS", ()))
    if "busy_timeout" not in pragmas:
        raise RuntimeError("This release of Flower sets no busy_timeout where 1.42 does; fedward pins 1.42.")
    pragmas["busy_timeout"] = str(BUSY_MILLISECONDS)
    setattr(sql_mixin, "SQLITE_PRAGMAS", tuple(pragmas.items()))  # noqa: B010 - its type has a fixed length


def main() -> None:
    """Run the SuperLink with this process's arguments."""
    from flwr.superlink.cli import flower_superlink

    wait_for_locks()
    flower_superlink()


if __name__ == "__main__":
    main()
