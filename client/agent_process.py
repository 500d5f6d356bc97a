"""The agent's process: opens the site once, serves it, and stops cleanly when it is told to."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from client.agent import AgentSettings, SiteAgent, StopSignal
from client.isolation import ISOLATION_OFF, SiteUsers
from client.opening import open_site
from client.settings import SiteSettings
from client.site_log import start_logging
from client.site_metrics import SiteMetrics
from common.errors import FedwardError, InputError, PlanError

if TYPE_CHECKING:
    from client.ledger import AccountBudget
    from client.site import Site

_log = logging.getLogger(__name__)

READY = b"ready\n"
"""What the agent writes to its starter's pipe once it listens."""


def run_agent(settings: SiteSettings, *, ready: int | None = None) -> None:
    """Serve a site until SIGTERM or SIGINT.

    Args:
        settings: The site file.
        ready: A file descriptor that is told when the agent listens, and closed then.

    Raises:
        FedwardError: The site cannot be opened or served; see `client.opening.open_site`.
    """
    # Whatever this process writes is its user's alone, whoever started it.
    os.umask(0o077)
    # No step at a site opens a connection of its own: an encoder must be on this host already.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    start_logging(site=settings.site.name, process="agent", file=settings.agent.log)
    try:
        _serve(settings, ready)
    except FedwardError as error:
        if settings.agent.log is not None:
            # The command says it on standard error, where the log is otherwise.
            _log.error("%s", error)
        raise


def _serve(settings: SiteSettings, ready: int | None) -> None:
    """Open the site and serve it."""
    users = SiteUsers.of(settings)
    if users.agent.uid != os.geteuid():
        raise PlanError(f"{settings.path}: the agent must run as {users.agent.name} (agent.user).")
    signal_training = StopSignal()
    started = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(_only_agent(settings.site.spool))
        site = stack.enter_context(open_site(settings, on_step=signal_training.on_step))
        users.require_closed(settings)
        metrics = SiteMetrics(isolated=users.isolated, spent=_spent(site))
        if settings.agent.metrics_port:
            server = metrics.serve(settings.agent.metrics_port)
            stack.callback(server.shutdown)
        agent = SiteAgent(
            site,
            parameters=site.host.layout.size,
            settings=AgentSettings(
                socket=settings.agent.socket,
                uids={users.agent.uid, users.supernode.uid},
                gid=users.gid,
                isolated=users.isolated,
            ),
            stop_signal=signal_training,
            watch=metrics,
        )
        _log.info(
            "Site %s listens on %s for plan %s; records and model were ready after %.1f s.",
            site.name,
            settings.agent.socket,
            site.plan.hash[:12],
            time.monotonic() - started,
        )
        if not users.isolated:
            _log.warning("%s", ISOLATION_OFF)
        _wait_for_the_end(agent, signal_training, settings.agent.stop_seconds, ready)


def _wait_for_the_end(
    agent: SiteAgent, signal_training: StopSignal, seconds: float, ready: int | None
) -> None:
    """Serve until a signal comes; a second one does not let the training end by itself."""
    ending = threading.Event()

    def on_signal(number: int, frame: object) -> None:
        if ending.is_set():
            signal_training.set()
        ending.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    if ready is not None:
        os.write(ready, READY)
        os.close(ready)
    ending.wait()
    _log.info("The agent is stopping; a request under way has %g s.", seconds)
    finished = agent.stop(seconds=seconds)
    _log.info("The agent has stopped%s.", "" if finished else "; a training was given up, its charge stays")


def _spent(site: Site) -> Callable[[], tuple[AccountBudget, ...]] | None:
    """Return what tells the metrics what was spent, where there is a ledger."""
    return None if site.budget is None else site.budget.ledger.spent


@contextmanager
def _only_agent(spool: Path) -> Iterator[None]:
    """Hold the spool's lock, so that no second agent answers for this site."""
    try:
        spool.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(spool / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise InputError(f"{spool}: the spool cannot be used ({error.strerror}).") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{spool}: another agent of this site is running; stop it first, for two would answer a round twice."
            ) from None
        yield
    finally:
        os.close(handle)
