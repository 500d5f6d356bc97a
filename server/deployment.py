"""`fedward-server up`: SuperLink, SuperExec and proxy as children that are kept alive, and one run over them."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common.errors import FedwardError, InputError
from common.ingestion import find_split
from common.plan import Plan, read_plan
from common.roster import Roster, read_roster
from server.deployment_state import ChildState, DeploymentState, end_leftovers, read_state
from server.enrolment import site_keys
from server.json_log import json_log
from server.monitoring import serve_metrics
from server.pki import check_pki, load_certificate
from server.processes import Process
from server.proxy import FLEET_PATHS, Proxy
from server.refusals import RefusalLog
from server.run_folder import lock_folder
from server.run_keeper import Outcome, RunKeeper
from server.run_view import RunView
from server.settings import ServerSettings
from server.superlink import HOST, SuperLink, SuperLinkError, superexec_command, superlink_command
from server.supervisor import Child, Supervisor, quiet_environment
from server.warmup import public_split

_log = logging.getLogger(__name__)

SUPERLINK, SUPEREXEC, PROXY = "superlink", "superexec", "proxy"

START_SECONDS = 90.0
"""How long the SuperLink may take until it answers for the first time."""

_TICK = 0.5
_LOOK_SECONDS = 3.0
_KEPT_REFUSALS = 5


class Deployment:
    """One server and one run.

    Args:
        settings: The `server.toml`.
        resume: Whether the run's folder holds a run that is gone on with.
        say: Gets a sentence now and then.
        show: Gets the whole view every half second.
        paths: What the proxy lets through.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        resume: bool,
        say: Callable[[str], None],
        show: Callable[[RunView], None] = lambda view: None,
        paths: tuple[str, ...] = FLEET_PATHS,
    ) -> None:
        self.settings, self.resume = settings, resume
        self._say, self._show, self._paths = say, show, paths
        self._stopping = False
        self._view: RunView | None = None
        self._refusals: tuple[str, ...] = ()
        self._online: tuple[str, ...] = ()

    def stop(self) -> None:
        """Ask the server to end now; the run can be resumed."""
        self._stopping = True

    def run(self) -> Outcome:
        """Check everything, start, watch the run to its end, and end all processes.

        Raises:
            InputError: Something that was given cannot be used; nothing was left running.
            SuperLinkError: The SuperLink did not start.
        """
        server = self.settings.server
        server.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, lock_folder(server.state))
            plan, roster, keys = check_settings(self.settings, resume=self.resume)
            stack.enter_context(json_log(server.state / "log.jsonl"))
            self._tell(*check_pki(server.pki))
            earlier = self._end_leftovers()
            require_free_ports(self.settings)
            end = load_certificate(server.pki / "proxy.pem").not_valid_after_utc
            stack.enter_context(serve_metrics(server.metrics_port, lambda: self._view, end))
            supervisor = stack.enter_context(self._children())
            link = self._start(supervisor)
            stack.callback(link.close)
            if earlier:
                # Its messages must not reach the sites any more, nor its ServerApp be started again.
                with contextlib.suppress(FedwardError):
                    link.stop_run(earlier)
            self._register(link, keys)
            self._tell(f"Sites reach the server on {server.listen}; the plan is {plan.hash[:12]}.")
            refused = RefusalLog(server.state / PROXY / "access.jsonl", keys)
            keeper = RunKeeper(link, self.settings, say=self._tell)
            return self._watch(supervisor, link, keeper, roster, refused)

    def _watch(
        self, supervisor: Supervisor, link: SuperLink, keeper: RunKeeper, roster: Roster, refused: RefusalLog
    ) -> Outcome:
        """Look after processes and run until the run is over."""
        keeper.submit()
        look_at = 0.0
        outcome = None
        while outcome is None and not self._stopping:
            for name in supervisor.poll():
                self._tell(f"{name} was started again.")
            outcome = keeper.poll()
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + _LOOK_SECONDS
                self._look(link, refused)
            self._publish(supervisor, keeper, roster)
            time.sleep(_TICK)
        if outcome is None:
            keeper.end_server_app(seconds=10.0)
            with contextlib.suppress(FedwardError):
                link.stop_run(keeper.flower_run_id)
            out = self.settings.run.out
            outcome = Outcome(
                exit_code=0,
                message=f"The server was stopped. Go on with 'fedward-server resume {out} --config "
                f"{self.settings.path}'.",
            )
        _log.info("%s", outcome.message)
        self._publish(supervisor, keeper, roster, message=outcome.message)
        return outcome

    def _look(self, link: SuperLink, refused: RefusalLog) -> None:
        """See who is connected and who was refused."""
        with contextlib.suppress(FedwardError):
            self._online = tuple(link.online())
        news = refused.news()
        self._tell(*news)
        self._refusals = (*self._refusals, *news)[-_KEPT_REFUSALS:]

    def _publish(
        self, supervisor: Supervisor, keeper: RunKeeper, roster: Roster, *, message: str = ""
    ) -> None:
        """Write the state, and show it."""
        progress = keeper.progress
        state = DeploymentState(
            process=Process.this(),
            out=str(keeper.out),
            children={
                child.name: ChildState(process=child.process, restarts=child.restarts)
                for child in supervisor.children
            },
            server_app=progress.process if progress else None,
            flower_run_id=keeper.flower_run_id,
            resumes=keeper.resumes,
            online=self._online,
            refusals=self._refusals,
            message=message,
        )
        if self._view is None or state != self._view.state:
            state.write(self.settings.server.state)
        self._view = RunView.of(state, roster)
        self._show(self._view)

    @contextlib.contextmanager
    def _children(self) -> Iterator[Supervisor]:
        """Prepare the child processes, and end them with the block."""
        server = self.settings.server
        folders = {name: server.state / name for name in (SUPERLINK, SUPEREXEC, PROXY, "logs")}
        for folder in folders.values():
            folder.mkdir(exist_ok=True, mode=0o700)
        port, pki = server.superlink_port, server.pki
        proxy = Proxy(
            listen=server.listen, superlink_port=port, pki=pki, folder=folders[PROXY], paths=self._paths
        )
        commands = {
            SUPERLINK: superlink_command(pki=pki, port=port, database=folders[SUPERLINK] / "superlink.db"),
            SUPEREXEC: superexec_command(pki=pki, port=port),
            PROXY: proxy.prepare(),
        }
        poll = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": f"{server.task_poll:g}"}
        supervisor = Supervisor(
            [
                Child(
                    name=name,
                    command=command,
                    environment=quiet_environment(server.state / "flower", **poll),
                    log=folders["logs"] / f"{name}.log",
                )
                for name, command in commands.items()
            ]
        )
        try:
            yield supervisor
        finally:
            supervisor.stop()

    def _start(self, supervisor: Supervisor) -> SuperLink:
        """Start the SuperLink and, once it answers, the others."""
        server = self.settings.server
        supervisor.start(SUPERLINK)
        link = SuperLink(f"{HOST}:{server.superlink_port}", server.pki / "ca.pem")
        until = time.monotonic() + START_SECONDS
        while not link.healthy():
            if supervisor.child(SUPERLINK).ended() or time.monotonic() > until:
                link.close()
                raise SuperLinkError(
                    f"The SuperLink does not answer; {server.state / 'logs' / 'superlink.log'} says why."
                )
            time.sleep(_TICK / 2)
        for name in (SUPEREXEC, PROXY):
            supervisor.start(name)
        return link

    def _register(self, link: SuperLink, keys: dict[str, str]) -> None:
        """Make the registered SuperNode keys the roster's."""
        added, gone = link.register(keys)
        if added:
            self._tell(f"Registered the SuperNode keys of {', '.join(added)}.")
        if gone:
            self._tell(f"Took out SuperNodes whose keys are not in the roster: {', '.join(gone)}.")

    def _end_leftovers(self) -> int:
        """End what an earlier server that was killed has left, and return Flower's id of its run, or 0."""
        old = read_state(self.settings.server.state)
        if old is None:
            return 0
        left = end_leftovers(old)
        if left:
            self._tell(f"An earlier server was killed; ended what it had left: {', '.join(left)}.")
        return old.flower_run_id

    def _tell(self, *sentences: str) -> None:
        """Say sentences, and log them."""
        for sentence in sentences:
            _log.info("%s", sentence)
            self._say(sentence)


def check_settings(settings: ServerSettings, *, resume: bool) -> tuple[Plan, Roster, dict[str, str]]:
    """Check what a run needs before anything is started.

    Returns:
        The plan, the roster, and each site's SuperNode key.

    Raises:
        InputError: Something is missing or does not belong together; the sentence says what to do.
    """
    run = settings.run
    plan, roster = read_plan(run.plan), read_roster(run.roster)
    roster.require_digest(plan.federation.roster_sha256)
    keys = site_keys(settings.server.pki, roster)
    if find_split(run.data, "test") is None:
        raise InputError(f"{run.data} has no split test; the server scores the model on it.")
    if plan.warmup is not None and not public_split(plan.warmup).is_absolute():
        raise InputError(
            f"warmup.source is {plan.warmup.source!r}; give its whole path, since the ServerApp runs in another folder."
        )
    begun = (run.out / "plan.toml").exists()
    if begun and not resume:
        raise InputError(
            f"{run.out} holds a run already; go on with 'fedward-server resume {run.out} --config {settings.path}', or "
            "name another folder as run.out."
        )
    if resume and not begun:
        raise InputError(f"{run.out} is not a run's folder: it has no plan.toml.")
    if resume and read_plan(run.out / "plan.toml").hash != plan.hash:
        raise InputError(
            f"{run.plan} is not the plan of the run in {run.out}; resume with the plan that it began with, or name "
            "another folder as run.out."
        )
    return plan, roster, keys


def require_free_ports(settings: ServerSettings) -> None:
    """Raise if something listens where the server would.

    Raises:
        InputError: It does; the sentence names the port and the setting.
    """
    server = settings.server
    host, port = server.proxy_address
    for address, number, setting in (
        (host, port, "server.listen"),
        (HOST, server.superlink_port, "server.superlink_port"),
    ):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, number))
            except OSError as error:
                raise InputError(
                    f"Port {number} of {address} cannot be used ({os.strerror(error.errno or 0)}); end what listens "
                    f"there, or change {setting} in {settings.path}."
                ) from None


def resumed_settings(settings: ServerSettings, run: Path) -> ServerSettings:
    """Return the settings with another run's folder: a path, or a name beside the configured run.

    Raises:
        InputError: There is no such run.
    """
    import dataclasses

    beside = settings.run.out.parent / run
    for folder in (run.absolute(), beside):
        if (folder / "plan.toml").exists():
            return dataclasses.replace(settings, run=dataclasses.replace(settings.run, out=folder))
    raise InputError(f"{run} is not a run's folder: it has no plan.toml, and {beside} has none either.")
