"""The server's own file, `server.toml`.

```toml
[server]
listen = "0.0.0.0:9443"   # the TLS proxy, the only port that sites need
pki = "."                 # made by `fedward-server pki init`
state = "state"           # logs, SuperLink's database, process ids
superlink_port = 9092     # loopback only
metrics_port = 0          # Prometheus on loopback; 0 switches it off

[run]
plan = "plan.toml"
roster = "roster.toml"
data = "data"             # a folder with test and, if possible, devel
out = "runs/first"
```

Paths are taken from the file's own folder.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from common.errors import PlanError, ValidationError
from common.plan import Section
from common.validation import require_float, require_int, require_known_keys, require_text


def _port(minimum: int) -> Callable[[str, object], int]:
    """Return a check for a port; 0 may stand for none."""
    return lambda name, value: require_int(name, value, minimum=minimum, maximum=65_535)


def _path(name: str, value: object) -> Path:
    """Return a path that is written as a text."""
    return value if isinstance(value, Path) else Path(require_text(name, value)).expanduser()


def _listen(name: str, value: object) -> str:
    """Return an address to listen on: an IP address of this host and a port."""
    host, _, port = require_text(name, value).rpartition(":")
    try:
        ipaddress.ip_address(host.strip("[]"))
        require_int(name, int(port), minimum=1, maximum=65_535)
    except ValueError:
        raise ValidationError(
            f'{name} is {value!r}; it must be an IP address of this host and a port, such as "0.0.0.0:9443".'
        ) from None
    return str(value)


def _field(check: Callable[[str, object], Any], **default: Any) -> Any:
    """Declare a field with its check."""
    return dataclasses.field(metadata={"check": check}, **default)


@dataclass(frozen=True, kw_only=True)
class ServerTable(Section):
    """Where the server listens and keeps its things.

    `task_poll` is how often SuperExec asks for a task, in seconds (Flower's own variable,
    0.01 to 60). `most_resumes` bounds the restarts of a ServerApp that dies without getting a round further.
    """

    title = "server"
    listen: str = _field(_listen, default="0.0.0.0:9443")
    pki: Path = _field(_path, default=Path("."))  # noqa: RUF009
    state: Path = _field(_path, default=Path("state"))  # noqa: RUF009
    superlink_port: int = _field(_port(1), default=9092)
    metrics_port: int = _field(_port(0), default=0)
    task_poll: float = _field(
        lambda name, value: require_float(name, value, minimum=0.01, maximum=60.0), default=0.2
    )
    most_resumes: int = _field(
        lambda name, value: require_int(name, value, minimum=0, maximum=1000), default=5
    )

    @property
    def proxy_address(self) -> tuple[str, int]:
        """The proxy's IP address and port."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


@dataclass(frozen=True, kw_only=True)
class RunTable(Section):
    """What is run."""

    title = "run"
    plan: Path = _field(_path, default=Path("plan.toml"))  # noqa: RUF009
    roster: Path = _field(_path, default=Path("roster.toml"))  # noqa: RUF009
    data: Path = _field(_path)  # noqa: RUF009
    out: Path = _field(_path)  # noqa: RUF009

    @classmethod
    def from_table(cls, table: object) -> Self:
        """Make the section; a missing field is named."""
        for name in ("data", "out"):
            if isinstance(table, dict) and name not in table:
                raise ValidationError(f"run.{name} is missing.")
        return super().from_table(table)


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """A `server.toml`, every path in it absolute.

    Attributes:
        path: The file.
        server: Its `[server]`.
        run: Its `[run]`.
    """

    path: Path
    server: ServerTable
    run: RunTable


_Table = TypeVar("_Table", bound=Section)


def read_server_settings(path: Path) -> ServerSettings:
    """Read a `server.toml`.

    Raises:
        PlanError: The file cannot be read, or a field is missing, unknown or not usable; the sentence names
            file and field.
    """
    path = path.expanduser().absolute()
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise PlanError(f"{path} does not exist; 'fedward-server pki init' makes a server.toml.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path} cannot be read as UTF-8 text ({type(error).__name__}).") from None
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{path} is not valid TOML: {error}.") from None
    try:
        require_known_keys("the server file", table, ("server", "run"))
        if "run" not in table:
            raise ValidationError("[run] is missing.")
        server = _anchored(ServerTable.from_table(table.get("server", {})), path.parent)
        run = _anchored(RunTable.from_table(table["run"]), path.parent)
        _require_different_ports(server)
    except ValidationError as error:
        raise PlanError(f"{path}: {error}") from None
    return ServerSettings(path=path, server=server, run=run)


def _require_different_ports(server: ServerTable) -> None:
    """Raise if two of the ports are one."""
    ports = [server.proxy_address[1], server.superlink_port]
    ports += [server.metrics_port] if server.metrics_port else []
    if len(set(ports)) < len(ports):
        raise ValidationError(
            "server.listen, server.superlink_port and server.metrics_port must be different ports."
        )


def _anchored(table: _Table, folder: Path) -> _Table:
    """Return the table with its paths taken from `folder`."""
    values = {one.name: getattr(table, one.name) for one in dataclasses.fields(table)}
    paths = {name: (folder / value).absolute() for name, value in values.items() if isinstance(value, Path)}
    return dataclasses.replace(table, **paths)
