"""How a site's `flower-supernode` is started: as which user, with which certificates, and told what (flwr 1.42)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import ssl
import sys
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from client.agent_socket import AGENT_SOCKET
from client.isolation import HostUser, SiteUsers
from client.settings import SiteSettings
from client.site_tables import ServerTable
from client.supervisor import ChildSpec
from common.command import QUIET_FLOWER
from common.errors import InputError, PlanError

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_KEPT = ("LANG", "LC_ALL", "TZ", "PYTHONPATH", "OMP_NUM_THREADS")
"""What a child gets of this process's environment; nothing that could be a secret of the operator's."""

_SECONDS = 5.0

LOST = re.compile(r"^ERROR\s*:\s+(Server|Client) error '\d{3} ")
"""What a SuperNode says (flwr 1.42) when the thread of its connection ends for an HTTP error; the process lives on
without it and asks for no message any more."""


def supernode_spec(settings: SiteSettings, users: SiteUsers) -> ChildSpec:
    """Return how the site's SuperNode is started, after everything that can be checked before.

    Raises:
        PlanError: `[server]` is missing, or names what cannot be used.
        InputError: A certificate has expired or is not the server's, a port is in use, or there is no Flower.
    """
    server = settings.server
    if server is None:
        raise PlanError(
            f"{settings.path}: [server] is missing; `fedward-server enrol accept` gives you what belongs there. To "
            "run a SuperNode of your own, add --supernode none."
        )
    command = [_program(), "--superlink", server.address, "--port", str(_port(server.port))]
    command += _security(settings, server)
    _require_readable(users.supernode, server)
    # A JSON string is a TOML string.
    command += ["--node-config", f"{AGENT_SOCKET}={json.dumps(str(settings.agent.socket))}"]
    home = _home(server.flwr_home, users.supernode)
    return ChildSpec(
        name="supernode",
        command=command,
        environment=_environment(users.supernode) | {"FLWR_HOME": str(home)},
        user=users.supernode,
        gid=users.gid,
        folder=home,
        logged=True,
        lost=LOST,
    )


def base_environment(user: HostUser) -> dict[str, str]:
    """Return the environment of any child of a site."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**kept, "PATH": path, "HOME": user.home, "USER": user.name, "LOGNAME": user.name}


def _environment(user: HostUser) -> dict[str, str]:
    """Return the environment of a SuperNode: it reports no usage, looks for no update, installs nothing."""
    # Flower asks for a message's process once a second; that second would be in every exchange.
    return base_environment(user) | dict(QUIET_FLOWER) | {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}


def _program() -> str:
    """Return the path of Flower's command, which is installed beside this Python."""
    beside = Path(sys.executable).parent / "flower-supernode"
    found = str(beside) if beside.exists() else shutil.which("flower-supernode")
    if found is None:
        raise InputError(
            "The command flower-supernode is not installed beside this Python; install fedward whole."
        )
    return found


def _security(settings: SiteSettings, server: ServerTable) -> list[str]:
    """Return the options for TLS and for the SuperNode's key."""
    host = server.address.rpartition(":")[0]
    if server.ca is None:
        if host not in _LOOPBACK:
            raise PlanError(
                f"{settings.path}: server.ca is missing, and {server.address} is another host; without it anybody on "
                "the way could be the server."
            )
        if server.supernode_key is not None:
            raise PlanError(
                f"{settings.path}: server.supernode_key needs server.ca; Flower takes it with TLS alone."
            )
        return ["--insecure"]
    _check_expiry(server.ca)
    _check_server(server)
    options = ["--root-certificates", str(server.ca)]
    if server.supernode_key is not None:
        if not server.supernode_key.is_file():
            raise PlanError(f"{settings.path}: server.supernode_key, {server.supernode_key}, is not there.")
        options += ["--auth-supernode-private-key", str(server.supernode_key)]
    return options


def _require_readable(user: HostUser, server: ServerTable) -> None:
    """Raise if the SuperNode's user cannot read what it needs."""
    for setting, path in (("ca", server.ca), ("supernode_key", server.supernode_key)):
        if path is not None and not user.can_read(path):
            raise InputError(
                f"server.{setting}, {path}, cannot be read by {user.name}, the user of the SuperNode; put it in a "
                "folder of that user's."
            )


def _check_expiry(ca: Path) -> None:
    """Raise if a certificate of the authority is not valid now."""
    try:
        certificates = x509.load_pem_x509_certificates(ca.read_bytes())
    except (OSError, ValueError) as error:
        raise PlanError(
            f"server.ca, {ca}, is not a file of PEM certificates ({type(error).__name__})."
        ) from None
    now = datetime.now(UTC)
    for one in certificates:
        if one.not_valid_after_utc < now:
            raise InputError(
                f"{ca}: the certificate expired on {one.not_valid_after_utc:%Y-%m-%d}; ask the server's operator for "
                "the new one."
            )
        if one.not_valid_before_utc > now:
            raise InputError(
                f"{ca}: the certificate is valid from {one.not_valid_before_utc:%Y-%m-%d %H:%M} UTC and this host's "
                f"clock says {now:%Y-%m-%d %H:%M}; set the clock."
            )


def _check_server(server: ServerTable) -> None:
    """Raise if the server that answers is not the one whose authority this site was given.

    A server that does not answer is no error: the SuperNode waits for it.
    """
    host, _, port = server.address.rpartition(":")
    context = ssl.create_default_context(cafile=str(server.ca))
    host = host.strip("[]")
    with contextlib.suppress(OSError):
        try:
            with socket.create_connection((host, int(port)), timeout=_SECONDS) as plain:
                context.wrap_socket(plain, server_hostname=host).close()
        except ssl.SSLCertVerificationError as error:
            raise InputError(
                f"{server.address}: the server's certificate was refused ({error.verify_message}); check server.ca "
                "and server.address, or ask the server's operator."
            ) from None


def _port(port: int) -> int:
    """Return the loopback port of the SuperNode's runtime, if nobody listens there; 0 picks one."""
    with socket.socket() as probe:
        # As the SuperNode's own server does it: a port of a process that has just ended is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(
                f"server.port: port {port} cannot be used ({error.strerror}); name another one, or 0 for any."
            ) from None
        number: int = probe.getsockname()[1]
        return number


def _home(folder: Path, user: HostUser) -> Path:
    """Make the SuperNode's folder, its user's alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.geteuid() == 0 and folder.stat().st_uid != user.uid:
            os.chown(folder, user.uid, user.gid)
    except OSError as error:
        raise InputError(f"{folder}: server.flwr_home cannot be used ({error.strerror}).") from None
    return folder
