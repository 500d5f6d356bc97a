"""A federation through Flower's own simulation engine, on many cores or GPUs.

Adapter module (flwr 1.42 `run_simulation`, the one deprecated call that we allow; Ray 2.55 and later).

Flower hands each message to any idle worker, so a site cannot live in its ClientApp: what it keeps in memory
between the stages of a round (keys, masks) would be in another process. Sites live in actors of our own, each
in one actor for the whole run, and the ClientApp relays to it. An actor hosts several sites around one shared
model, so that memory grows with cores or GPUs and not with the number of sites.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from client.app import make_client_app
from client.site import Site
from common.errors import InputError
from common.host import ModelHost
from common.messages import Envelope
from common.plan import Plan
from server.app import make_server_app
from server.federation import FederationJob
from simulation.ray_relay import RaySites

SiteMaker = Callable[[ModelHost], Site]

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_DEDUP_LOGS": "0",
}


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How sites are dealt out.

    Attributes:
        workers: Actors that host sites; site number `i` lives in actor `i` modulo `workers`.
        threads: Torch threads of each actor; 0 leaves torch's own choice.
        gpus: GPUs that each actor has to itself, 0 or 1.
        device: The device of the actors' models.
    """

    workers: int
    threads: int
    gpus: int
    device: str

    @classmethod
    def choose(cls, plan: Plan, *, sites: int, device: str) -> Placement:
        """Give each GPU, or else each core, one actor, and no more actors than sites.

        Raises:
            InputError: The device is a certain GPU; Ray deals the GPUs out itself.
        """
        if device.startswith("cuda:"):
            raise InputError(
                f"--device is {device!r}; Ray deals out all GPUs itself, so give auto, cuda or cpu."
            )
        gpus = torch.cuda.device_count() if device != "cpu" else 0
        cores = len(os.sched_getaffinity(0))
        workers = min(sites, gpus or cores)
        return cls(
            workers=workers,
            threads=plan.simulation.threads or max(1, cores // workers),
            gpus=1 if gpus else 0,
            device=device,
        )


class SiteWorker:
    """A Ray actor's body: some sites, one model that they take turns on."""

    def __init__(
        self, plan: Plan, makers: Mapping[int, Callable[[ModelHost], Site]], placement: Placement
    ) -> None:
        torch.set_num_threads(placement.threads)
        host = ModelHost.build(plan, device=placement.device)
        self._sites = {partition: make(host) for partition, make in makers.items()}

    def ready(self) -> bool:
        """Return once the model is built."""
        return True

    def handle(self, partition: int, request: Envelope) -> Envelope:
        """Answer one request to a site of this actor."""
        # Ray hands arrays over in read-only shared memory; a site may work in them.
        arrays = {name: np.array(values) for name, values in request.arrays.items()}
        return self._sites[partition].handle(replace(request, arrays=arrays))


def run_with_ray(job: FederationJob, makers: Sequence[SiteMaker], *, device: str = "auto") -> dict[str, Any]:
    """Run a federation through Flower's simulation engine.

    Args:
        job: The run.
        makers: One function a site, which makes it around a model; sent to the actors with all that it
            closes over (plan, roster, records and key), and to nobody else.
        device: The device of the sites' models.

    Raises:
        InputError: Ray is not installed, or the device cannot be used.
        RoundError: A round could not be completed; the run can be resumed.
    """
    require_ray()
    placement = Placement.choose(job.plan, sites=len(makers), device=device)
    results: list[dict[str, Any]] = []
    with _ray(placement), _quiet_flower():
        from flwr.simulation import run_simulation

        sites = _start_sites(job.plan, makers, placement)
        run_simulation(
            server_app=make_server_app(
                lambda context: contextlib.nullcontext(job), nodes=len(makers), on_result=results.append
            ),
            client_app=make_client_app(sites.handler_of),
            num_supernodes=len(makers),
            backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
        )
    return results[0]


def require_ray() -> None:
    """Raise unless Ray is installed.

    Raises:
        InputError: It is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError("--engine ray needs Ray, which is not installed; run: pip install 'fedward[ray]'.")


def _start_sites(plan: Plan, makers: Sequence[SiteMaker], placement: Placement) -> RaySites:
    """Start the actors and wait for their models, so that no round waits for them."""
    import ray

    actor_class = ray.remote(SiteWorker)
    run = secrets.token_hex(4)
    actors = [
        actor_class.options(name=f"fedward-{run}-sites-{number}", num_cpus=0, num_gpus=placement.gpus).remote(
            plan, dict(list(enumerate(makers))[number :: placement.workers]), placement
        )
        for number in range(placement.workers)
    ]
    ray.get([actor.ready.remote() for actor in actors])
    return RaySites(actors=actors)


@contextlib.contextmanager
def _ray(placement: Placement) -> Iterator[None]:
    """Start Ray on this machine, without dashboard or usage reports, and stop it."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    # Ray's workers are new interpreters; they must find the packages that this one has found.
    path = os.pathsep.join(entry for entry in sys.path if entry)
    ray.init(
        num_cpus=placement.workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": path, **_QUIET}},
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _quiet_flower() -> Iterator[None]:
    """Let Flower's engine report nothing to its makers, and log errors alone."""
    from flwr.supercore import telemetry

    logger = logging.getLogger("flwr")
    level, enabled = logger.level, telemetry.FLWR_TELEMETRY_ENABLED
    logger.setLevel(logging.ERROR)
    # The variable of the same name counts only before Flower's first import, which a caller may have made.
    telemetry.FLWR_TELEMETRY_ENABLED = "0"
    try:
        yield
    finally:
        logger.setLevel(level)
        telemetry.FLWR_TELEMETRY_ENABLED = enabled
