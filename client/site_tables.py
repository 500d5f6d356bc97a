"""The tables of a `site.toml`, each a frozen dataclass whose every value is checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from client.ledger_book import Account
from common.accounting import UNITS, require_delta
from common.errors import ValidationError
from common.plan import Section
from common.validation import require_choice, require_float, require_int, require_text


def _required(check: Callable[[str, object], Any]) -> Any:
    """Declare a field that must be in the file."""
    return dataclasses.field(metadata={"check": check})


def optional(default: Any, check: Callable[[str, object], Any]) -> Any:
    """Declare a field that may be left out."""
    return dataclasses.field(default=default, metadata={"check": check})


def _path(name: str, value: object) -> Path:
    """Return a path that is written as a text."""
    return value if isinstance(value, Path) else Path(require_text(name, value)).expanduser()


def path_or_none(name: str, value: object) -> Path | None:
    """Return a path, or None where the field is left out or empty."""
    return None if value is None or value == "" else _path(name, value)


def _text_or_empty(name: str, value: object) -> str:
    """Return a text that may be empty."""
    return "" if value == "" else require_text(name, value)


def _port(name: str, value: object) -> int:
    """Return a port; 0 stands for none, or for any."""
    return require_int(name, value, minimum=0, maximum=65_535)


def texts(name: str, value: object) -> tuple[str, ...]:
    """Return a list of texts."""
    if not isinstance(value, list | tuple):
        raise ValidationError(f"{name} is {value!r}; it must be a list of texts.")
    return tuple(require_text(f"{name}[{number}]", one) for number, one in enumerate(value))


def _address(name: str, value: object) -> str:
    """Return a `host:port`."""
    text = require_text(name, value)
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ValidationError(f"{name} is {text!r}; it must be host:port, as in 'federation.example:8443'.")
    return text


@dataclass(frozen=True, kw_only=True)
class RequiredSection(Section):
    """A table some of whose fields have no safe default."""

    @classmethod
    def from_table(cls, table: object) -> Self:
        """Make the section; a missing field is named."""
        names = [one.name for one in dataclasses.fields(cls) if one.default is dataclasses.MISSING]
        for name in names:
            if isinstance(table, dict) and name not in table:
                raise ValidationError(f"{cls.title}.{name} is missing.")
        return super().from_table(table)


Table = TypeVar("Table", bound=RequiredSection)


def anchored(table: Table, folder: Path) -> Table:
    """Return the table with its paths taken from `folder`."""
    values = {one.name: getattr(table, one.name) for one in dataclasses.fields(table)}
    paths = {name: folder / value for name, value in values.items() if isinstance(value, Path)}
    return dataclasses.replace(table, **paths)


@dataclass(frozen=True, kw_only=True)
class SiteTable(RequiredSection):
    """Who the site is and where its things are."""

    title = "site"
    name: str = _required(require_text)
    data: Path = _required(_path)  # noqa: RUF009
    roster: Path = _required(_path)  # noqa: RUF009
    spool: Path = _required(_path)  # noqa: RUF009
    plan: Path = _required(_path)  # noqa: RUF009
    device: str = optional("auto", require_text)


@dataclass(frozen=True, kw_only=True)
class KeysTable(RequiredSection):
    """The site's keys."""

    title = "keys"
    identity: Path = _required(_path)  # noqa: RUF009


@dataclass(frozen=True, kw_only=True)
class LedgerTable(RequiredSection):
    """The privacy ledger, and the population whose privacy the trainings are charged to.

    Attributes:
        path: The database.
        witness: The witness, in another folder and best on another disk.
        account: The site's name for the population.
        unit: What one contribution covers, as in the plan.
        delta: The lifetime limit's delta; below one over the population.
        declaration: Who the population is, in the operator's words. They are signed into the ledger.
        disjoint_from: The ledger's other accounts, with whose patients this population shares none.
    """

    title = "ledger"
    path: Path = _required(_path)  # noqa: RUF009
    witness: Path = _required(_path)  # noqa: RUF009
    account: str = _required(require_text)
    unit: str = _required(lambda name, value: require_choice(name, value, UNITS))
    delta: float = _required(lambda name, value: require_delta(value))
    declaration: str = _required(require_text)
    disjoint_from: tuple[str, ...] = optional((), texts)

    def to_account(self) -> Account:
        """Return the account as the ledger is to have it."""
        return Account(
            name=self.account,
            unit=self.unit,
            delta=self.delta,
            declaration=self.declaration,
            disjoint_from=self.disjoint_from,
        )


@dataclass(frozen=True, kw_only=True)
class AgentTable(RequiredSection):
    """How the agent runs and how it is reached.

    Attributes:
        socket: Its UNIX socket, in a folder of mode 0750.
        user: The user that the agent runs as where `fedward-site run` is started by root; empty for whoever
            started it.
        supernode_user: The user that the SuperNode, and with it the server's code, runs as; empty for the
            agent's own, which is no isolation.
        socket_group: The group that may open the socket; needed where the two users differ.
        metrics_port: Loopback port for Prometheus; 0 for none.
        log: File of the agent's log; None for standard error.
        stop_seconds: How long a training may go on once the agent is asked to stop.
    """

    title = "agent"
    socket: Path = optional(Path("run/agent.sock"), _path)  # noqa: RUF009
    user: str = optional("", _text_or_empty)
    supernode_user: str = optional("", _text_or_empty)
    socket_group: str = optional("", _text_or_empty)
    metrics_port: int = optional(0, _port)
    log: Path | None = optional(None, path_or_none)  # noqa: RUF009
    stop_seconds: float = optional(
        30.0, lambda name, value: require_float(name, value, minimum=0, maximum=86_400)
    )


@dataclass(frozen=True, kw_only=True)
class ServerTable(RequiredSection):
    """Where the federation's server is.

    Attributes:
        address: Host and port of its TLS proxy.
        ca: The certificate authority that the server's certificate is checked against; None only where the
            server is this very host, for a trial.
        supernode_key: The SuperNode's own private key; None where the server takes any SuperNode.
        flwr_home: The SuperNode's own folder (`FLWR_HOME`), its user's alone.
        port: Loopback port of the SuperNode's runtime; 0 picks one.
    """

    title = "server"
    address: str = _required(_address)
    ca: Path | None = optional(None, path_or_none)  # noqa: RUF009
    supernode_key: Path | None = optional(None, path_or_none)  # noqa: RUF009
    flwr_home: Path = optional(Path("flwr"), _path)  # noqa: RUF009
    port: int = optional(0, _port)
