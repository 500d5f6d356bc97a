"""The bodies of `fedward-server up`, `status`, `resume` and `stop`."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from common.errors import InputError

if TYPE_CHECKING:
    from server.deployment_state import DeploymentState
    from server.settings import ServerSettings

Config = Annotated[Path, typer.Option("--config", help="The server's own file.")]

_SERVER_TOML = Path("server.toml")


def up(config: Config = _SERVER_TOML) -> None:
    """Start SuperLink, TLS proxy and the run, and watch it; what dies is started again."""
    from server.settings import read_server_settings

    _serve(read_server_settings(config), resume=False)


def resume(
    run: Annotated[Path, typer.Argument(help="The run's folder, or its name.", show_default=False)],
    config: Config = _SERVER_TOML,
) -> None:
    """Go on with a run from its last checkpoint."""
    from server.deployment import resumed_settings
    from server.settings import read_server_settings

    _serve(resumed_settings(read_server_settings(config), run), resume=True)


def status(
    config: Config = _SERVER_TOML,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show how the server and its run are doing; works from any shell of the same user."""
    from common.roster import read_roster
    from server.run_view import RunView
    from server.settings import read_server_settings

    settings = read_server_settings(config)
    view = RunView.of(_state(settings), read_roster(settings.run.roster))
    console = Console(highlight=False)
    if as_json:
        console.print_json(json.dumps(view.table()))
    else:
        console.print(view.render(), soft_wrap=True)


def stop(
    config: Config = _SERVER_TOML,
    now: Annotated[
        bool, typer.Option("--now", help="Do not wait for the round; what it trained is lost.")
    ] = False,
) -> None:
    """End the server after its current round; the run can be resumed."""
    from server.deployment_state import end_leftovers
    from server.run_progress import request_stop
    from server.settings import read_server_settings

    settings = read_server_settings(config)
    state = _state(settings)
    console = Console(soft_wrap=True, highlight=False)
    if not state.running:
        left = end_leftovers(state)
        console.print(
            f"The server was not running; ended what it had left: {', '.join(left)}."
            if left
            else "The server is not running."
        )
        return
    if now or not Path(state.out).is_dir():
        state.process.signal(signal.SIGTERM)
    else:
        request_stop(Path(state.out))
        console.print("The server ends after the current round; Ctrl-C leaves it to that.")
    while state.process.alive:
        time.sleep(0.2)
    console.print(_state(settings).message or "The server has ended.", markup=False)


def _serve(settings: ServerSettings, *, resume: bool) -> None:
    """Run a server in this process until its run is over."""
    from server.deployment import Deployment
    from server.run_view import RunView

    console = Console(highlight=False)

    def say(sentence: str) -> None:
        console.print(sentence, markup=False, soft_wrap=True)

    with Live(console=console, auto_refresh=False) if console.is_terminal else _Lines(console) as screen:

        def show(view: RunView) -> None:
            screen.update(view.render() if console.is_terminal else view.headline(), refresh=True)

        deployment = Deployment(settings, resume=resume, say=say, show=show)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: deployment.stop())
        outcome = deployment.run()
    if console.is_terminal:
        say(outcome.message)
    raise typer.Exit(outcome.exit_code)


class _Lines:
    """Stands in for a live screen in a log: a line whenever the headline changes."""

    def __init__(self, console: Console) -> None:
        self._console, self._last = console, ""

    def __enter__(self) -> _Lines:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """End."""

    def update(self, line: Any, *, refresh: bool = True) -> None:
        """Print the line if it is another one."""
        del refresh
        if line != self._last:
            self._last = line
            self._console.print(line, markup=False, soft_wrap=True)


def _state(settings: ServerSettings) -> DeploymentState:
    """Return what the server has written.

    Raises:
        InputError: It was never started.
    """
    from server.deployment_state import read_state

    state = read_state(settings.server.state)
    if state is None:
        raise InputError(
            f"No server was started with {settings.path} yet; begin with 'fedward-server up --config {settings.path}'."
        )
    return state
