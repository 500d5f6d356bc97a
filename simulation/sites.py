"""Folders for a real local federation: what each hospital and the server would have, made of one data set.

```
OUT/
├── plan.toml             the plan, bound to the roster
├── roster.toml           the sites' names, public keys and weights
├── server/data/          devel.jsonl and test.jsonl
├── run.toml              the run-config: where the server finds its files and puts the run
├── flower/config.toml    FLWR_HOME of `flwr run`: the SuperLink on this machine
└── site-1/               one folder a site
    ├── site.toml
    ├── identity.pem      mode 0600
    ├── data/train.jsonl
    └── spool/
```
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import tomli_w

from client.keys import make_identity_key
from common.errors import InputError
from common.files import write_atomically
from common.ingestion import Dataset
from common.ingestion_jsonl import json_line
from common.plan import Plan
from common.records import Note
from common.roster import Member, Roster, write_roster
from simulation.engine import split_notes

SUPERLINK = "127.0.0.1:8000"
"""Where a SuperLink listens by default (flwr 1.42)."""

CONNECTION = "fedward"
"""What `flwr run . NAME` calls that SuperLink."""


def write_sites(plan: Plan, data: Dataset, out: Path, *, superlink: str = SUPERLINK) -> Roster:
    """Divide a data set over sites as the plan's `[simulation]` says, and write every party's folder.

    The identity keys are fresh and real; the roster and the plan are bound to them.

    Args:
        plan: The plan; its roster hash is filled in.
        data: Training notes to divide; the server's development and test notes.
        out: A folder that is absent or empty.
        superlink: Host and port of the SuperLink.

    Returns:
        The roster.

    Raises:
        InputError: The folder is not empty, or the notes cannot be divided as asked; nothing was written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not an empty folder; name another one.")
    shares = split_notes(plan, data.train)
    out.mkdir(parents=True, exist_ok=True)
    try:
        return _write(plan, data, shares, out, superlink)
    except BaseException:
        # A half of it could be taken for the whole: the plan would name a roster without keys.
        for entry in out.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        raise


def _write(plan: Plan, data: Dataset, shares: Sequence[Sequence[Note]], out: Path, superlink: str) -> Roster:
    """Write all folders."""
    members = tuple(_write_site(out / f"site-{n}", notes, superlink) for n, notes in enumerate(shares, 1))
    roster = Roster(members)
    write_roster(roster, out / "roster.toml")
    bound = replace(plan, federation=replace(plan.federation, roster_sha256=roster.digest().hex()))
    write_atomically(out / "plan.toml", bound.to_toml())
    server = out / "server" / "data"
    server.mkdir(parents=True)
    for split, notes in (("devel", data.devel), ("test", data.test)):
        if notes:
            write_notes(server / f"{split}.jsonl", notes)
    paths = {"plan": "plan.toml", "roster": "roster.toml", "data": "server/data", "out": "run"}
    # Absolute, because the ServerApp runs where the SuperLink was started.
    run = {key: str(out.resolve() / path) for key, path in paths.items()}
    write_atomically(out / "run.toml", tomli_w.dumps(run))
    (out / "flower").mkdir()
    connection = {CONNECTION: {"address": superlink, "insecure": True}}
    config = {"superlink": {"default": CONNECTION, **connection}}
    write_atomically(out / "flower" / "config.toml", tomli_w.dumps(config))
    return roster


def _write_site(folder: Path, notes: Sequence[Note], superlink: str) -> Member:
    """Write one site's folder and return its line of the roster."""
    for part in ("data", "spool"):
        (folder / part).mkdir(parents=True, mode=0o700)
    public = make_identity_key(folder / "identity.pem")
    write_notes(folder / "data" / "train.jsonl", notes)
    site = {
        "name": folder.name,
        "data": "data",
        "roster": "../roster.toml",
        "plan": "../plan.toml",
        "spool": "spool",
        "device": "auto",
    }
    server = {"address": superlink, "flwr_home": "flower"}
    settings = {"site": site, "keys": {"identity": "identity.pem"}, "server": server}
    header = "# A trial: without [policy] this site accepts whatever its plan says. Never for real records.\n"
    write_atomically(folder / "site.toml", header + tomli_w.dumps(settings))
    return Member(name=folder.name, identity_key=public, public_units=len(notes))


def write_notes(path: Path, notes: Iterable[Note]) -> None:
    """Write notes as JSONL with character spans, which ingestion reads back."""
    write_atomically(path, "".join(f"{json_line(note)}\n" for note in notes))
