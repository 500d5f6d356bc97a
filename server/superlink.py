"""The SuperLink and its SuperExec: how they are started, and what is asked of them (adapter, flwr 1.42).

The Control API is reached on loopback alone. Its client is Flower's own, of a release that `pyproject.toml`
pins to the minor version.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

import common
from common.enrolment import parse_supernode_key
from common.errors import FedwardError, InputError

HOST: Final = "127.0.0.1"
FINISHED: Final = "finished"

_SECONDS = 15.0
_UNREGISTERED = "unregistered"


class SuperLinkError(FedwardError):
    """The SuperLink did not do what it was asked."""

    code = "superlink"


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """What the SuperLink says of a run.

    Attributes:
        status: `pending`, `starting`, `running` or `finished`.
        sub_status: `completed`, `failed` or `stopped`, once it is finished.
        details: One sentence, where it failed.
    """

    status: str
    sub_status: str
    details: str


def superlink_command(*, pki: Path, port: int, database: Path) -> list[str]:
    """Return the command of a SuperLink on loopback: TLS, SuperNode keys, a database on disk, apps elsewhere."""
    return [
        # -P: what lies in the working folder is not imported.
        *(sys.executable, "-P", "-m", "server.superlink_process"),
        *("--host", HOST, "--port", str(port)),
        *("--ssl-certfile", str(pki / "superlink.pem")),
        *("--ssl-keyfile", str(pki / "superlink.key")),
        *("--ssl-ca-certfile", str(pki / "ca.pem")),
        "--enable-supernode-auth",
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(pki / "superexec.secret")),
        *("--database", str(database)),
        "--disable-runtime-dependency-installation",
    ]


def superexec_command(*, pki: Path, port: int) -> list[str]:
    """Return the command of the SuperExec, which starts the ServerApp."""
    return [
        _beside_python("flower-superexec"),
        *("--runtime-api-address", f"{HOST}:{port}"),
        *("--root-certificates", str(pki / "ca.pem")),
        *("--superexec-auth-secret-file", str(pki / "superexec.secret")),
    ]


class SuperLink:
    """Talks to a SuperLink's Control API.

    Args:
        address: Host and port.
        authority: The certificate authority, PEM.
    """

    def __init__(self, address: str, authority: Path) -> None:
        self.address = address
        self._authority = authority
        self._client = ControlHttpClient.from_server_address(
            address,
            insecure=False,
            root_certificates=authority.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def healthy(self) -> bool:
        """Return whether it answers."""
        import ssl

        context = ssl.create_default_context(cafile=str(self._authority))
        try:
            return httpx.get(f"https://{self.address}/health", verify=context, timeout=5.0).status_code == 200
        except httpx.HTTPError:
            return False

    def register(self, keys: dict[str, str]) -> tuple[list[str], list[str]]:
        """Make the registered SuperNode keys those of the roster.

        Args:
            keys: SuperNode key by site, in OpenSSH format.

        Returns:
            The sites whose keys were missing, and the names of nodes that were taken out since no site of the
            roster has their key any more.
        """
        wanted = {_pem(key): site for site, key in keys.items()}
        with _Translated("register a SuperNode"):
            nodes = [
                node
                for node in self._client.ListNodes(ListNodesRequest()).nodes_info
                if node.status != _UNREGISTERED
            ]
            known = {node.public_key.strip(): node for node in nodes}
            gone = [node for key, node in known.items() if key not in wanted]
            for node in gone:
                self._client.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))
            added = [site for key, site in wanted.items() if key not in known]
            for site in added:
                self._client.RegisterNode(RegisterNodeRequest(public_key=_pem(keys[site]) + b"\n", name=site))
        return sorted(added), sorted(node.name or str(node.node_id) for node in gone)

    def online(self) -> list[str]:
        """Return the sites whose SuperNodes are connected now."""
        with _Translated("list the SuperNodes"):
            nodes = self._client.ListNodes(ListNodesRequest()).nodes_info
        return sorted(node.name for node in nodes if node.status == "online")

    def start_run(self, config: dict[str, str | bool]) -> int:
        """Submit fedward's code with a run-config, and return Flower's run id."""
        content = build_app()
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        with _Translated("start the run"):
            answer = self._client.StartRun(
                StartRunRequest(fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(config)))
            )
        if not answer.HasField("run_id"):
            raise SuperLinkError("The SuperLink did not start the run; its log says why.")
        return int(answer.run_id)

    def run_status(self, run_id: int) -> RunStatus:
        """Return how a run is doing."""
        with _Translated("say how the run is doing"):
            runs = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict
        status = runs[run_id].status
        return RunStatus(status=status.status, sub_status=status.sub_status, details=status.details)

    def stop_run(self, run_id: int) -> None:
        """End a run, so that its messages are no longer delivered; one that has ended is left alone."""
        if self.run_status(run_id).status != FINISHED:
            with _Translated("stop the run"):
                self._client.StopRun(StopRunRequest(run_id=run_id))


def build_app() -> bytes:
    """Return fedward's code as Flower bundles it for a run.

    Raises:
        InputError: fedward was not installed from its repository, so that there is nothing to bundle.
    """
    root = Path(common.__file__).resolve().parents[1]
    if not (root / "pyproject.toml").is_file():
        raise InputError(
            f"{root} has no pyproject.toml, which Flower needs to bundle the code for a run; install fedward from a "
            "checkout with 'make install'."
        )
    with warnings.catch_warnings():
        # flwr 1.42 asks pathspec for a kind of pattern that pathspec 1.0 has renamed.
        warnings.simplefilter("ignore", DeprecationWarning)
        return bytes(build_fab_from_disk(root))


class _Translated:
    """Turns what the Control API's client raises into one sentence."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Translate an HTTP error."""
        if isinstance(error, httpx.HTTPStatusError):
            raise SuperLinkError(
                f"The SuperLink did not {self._what}: it answered {error.response.status_code}; see its log."
            ) from error
        if isinstance(error, httpx.HTTPError):
            raise SuperLinkError(f"The SuperLink did not {self._what}: {type(error).__name__}.") from error


def _pem(key: str) -> bytes:
    """Return a SuperNode's public key as Flower keeps it, without the last line break."""
    return parse_supernode_key(key).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).strip()


def _beside_python(name: str) -> str:
    """Return Flower's command of this environment.

    Raises:
        InputError: It is not installed.
    """
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise InputError(f"{path} does not exist; run 'make install'.")
    return str(path)
