"""The Flower ServerApp (flwr 1.42): reads the run's files and runs the federation over the grid.

The run-config keys are `plan`, `roster`, `data`, `out` and `resume`; see `pyproject.toml`. Paths are taken from
the folder in which the SuperLink was started.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from common.errors import FedwardError, InputError
from common.host import ModelHost, schema_of
from common.ingestion import read_dataset, require_annotated
from common.plan import read_plan
from common.roster import read_roster
from server.federation import FederationJob, open_run, run_federation
from server.json_log import json_log
from server.run_progress import ProgressWatch
from server.warmup import public_notes
from server.watch import ConsoleWatch

PULLERS = 4
"""Threads that pull replies of a real grid, and so the most replies in memory."""

JobFactory = Callable[[Context], AbstractContextManager[FederationJob]]

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.2


def make_server_app(
    job_of: JobFactory, *, nodes: int = 0, on_result: Callable[[Any], None] | None = None
) -> ServerApp:
    """Make a ServerApp that runs one federation.

    Args:
        job_of: Makes the job of a run; its context ends with the run.
        nodes: Nodes to wait for before the first round, at most a round's training deadline; 0 starts
            as soon as the plan's minimum cohort is there, as a real federation does.
        on_result: Called with what `result.json` holds.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            with job_of(context) as job:
                _await_nodes(grid, nodes, job.plan.federation.train_deadline)
                result = run_federation(grid, job)
        except FedwardError as error:
            # Flower reports a failed run by its traceback; the sentence is what an operator needs.
            _log.error("%s", error)
            raise
        if on_result is not None:
            on_result(result)

    return app


@contextlib.contextmanager
def configured_job(context: Context) -> Iterator[FederationJob]:
    """Open the run that the run-config describes.

    Raises:
        InputError: A key is missing, or a file or folder is not usable.
    """
    config = context.run_config
    out, resume = _path(config, "out"), config.get("resume") is True
    plan = read_plan(out / "plan.toml" if resume and not config.get("plan") else _path(config, "plan"))
    roster = read_roster(_path(config, "roster"))
    roster.require_digest(plan.federation.roster_sha256)
    data = read_dataset(_path(config, "data"), schema_of(plan), required=("test",))
    for split in ("devel", "test"):
        if split in data.report:
            require_annotated(data.report[split].counts, data.report[split].path)
    notes = public_notes(plan)
    host = ModelHost.build(plan)
    watching = ConsoleWatch.on(Console(), plan.federation.rounds)
    with (
        open_run(plan, out, resume=resume) as folder,
        json_log(folder.path / "log.jsonl"),
        watching as watch,
        ProgressWatch(folder.path, plan.federation.rounds, watch) as listener,
    ):
        yield FederationJob(
            plan=plan,
            roster=roster,
            folder=folder,
            host=host,
            devel=data.devel,
            test=data.test,
            warmup_notes=notes,
            listener=listener,
            pullers=PULLERS,
        )


def _path(config: Mapping[str, Any], key: str) -> Path:
    """Return the path of a run-config key."""
    value = config.get(key)
    if not isinstance(value, str) or not value:
        raise InputError(f"The run-config key {key} is empty; add --run-config '{key}=\"PATH\"' to flwr run.")
    return Path(value).expanduser()


def _await_nodes(grid: Grid, nodes: int, seconds: float) -> None:
    """Wait until so many nodes are connected."""
    end = time.monotonic() + seconds
    while len(list(grid.get_node_ids())) < nodes and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)


app = make_server_app(configured_job)
