"""Starts real agents by the dozen: imports everything once, and forks one for each line that it reads.

Each line is a JSON object: `site`, the path of a site.toml; `log`, where the agent's standard error goes; and
`fault`, what goes wrong in it, or null. The answer is a line with the agent's process id and whether it listens.
A fault is `kill:MOMENT` (the process kills itself there, as `kill -9` would), `full:charge` (no file may grow while the
first charge is written) or `quote:record` (a library quotes a record in all that it can say).
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import client.agent_process
import client.private_round
import client.secure_aggregation
import client.site
from client.agent import StopSignal
from client.ledger import Ledger
from client.opening import agreement
from client.plan_facts import facts_of
from client.private_round import PrivateTraining
from client.round_training import SiteRecords
from client.secure_aggregation import SecureAggregationClient
from client.settings import SiteSettings, read_settings
from common.errors import FedwardError
from common.host import ModelHost

_warm: set[str] = set()


def die(*_: Any, **__: Any) -> None:
    """End as `kill -9` ends a process."""
    os.kill(os.getpid(), signal.SIGKILL)


def dying_after(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that does its work, whose answer never leaves."""

    def answer(self: Any, *arguments: Any) -> None:
        method(self, *arguments)
        die()

    return answer


def with_full_disk(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method during whose first call no file can grow."""
    calls = []

    def charge(self: Any, *arguments: Any, **named: Any) -> Any:
        calls.append(1)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if len(calls) == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            return method(self, *arguments, **named)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return charge


def quoting(records: SiteRecords) -> None:
    """Fail as a library does that quotes what it choked on, in a warning, a log line and an exception."""
    text = records._notes[0].text
    warnings.warn(text, stacklevel=1)
    logging.getLogger("some_library").error("cannot encode %s", text)
    raise ValueError(text)


def put_in(fault: str | None) -> None:
    """Make this process fail where it is told to."""
    kind, _, moment = (fault or "").partition(":")
    if kind == "full":
        Ledger.charge = with_full_disk(Ledger.charge)
    elif kind == "quote":
        SiteRecords.examples = quoting
    elif moment == "charged":
        PrivateTraining._fit = die
    elif moment == "training":
        StopSignal.on_step = die
    elif moment == "spooled":
        Ledger.record_spooled = die
    elif kind == "kill":
        setattr(SecureAggregationClient, moment, dying_after(getattr(SecureAggregationClient, moment)))


def warm_up(settings: SiteSettings) -> None:
    """Do once, before agents are forked, what each of them would do alike: load libraries, and count epsilons."""
    plan, roster = agreement(settings)
    if plan.hash not in _warm:
        _warm.add(plan.hash)
        facts_of(plan, sites=len(roster))
        host = ModelHost.build(plan)
        # The first optimizer step of a process loads more of torch than all before it.
        torch.optim.AdamW(host.model.parameters()).step()


def be_agent(order: dict[str, Any], ready: int) -> None:
    """Run the agent in this process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    put_in(order["fault"])
    try:
        client.agent_process.run_agent(read_settings(Path(order["site"])), ready=ready)
        os._exit(0)
    except FedwardError as error:
        os.write(2, f"{error}\n".encode())
        os._exit(error.exit_code)


def main() -> None:
    """Fork an agent for each line."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        order = json.loads(line)
        warm_up(read_settings(order["site"]))
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            be_agent(order, writing)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            listens = bool(pipe.read())
        print(json.dumps({"pid": child, "listens": listens}), flush=True)


if __name__ == "__main__":
    main()
