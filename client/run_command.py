"""`fedward-site run`: the agent, and beside it the SuperNode, each kept running as its own user.

This process stays small and holds nothing: it starts the two, starts them again when they die, and ends them.
"""

from __future__ import annotations

import logging
import os
import sys

from client.agent_socket import FOLDER_MODE
from client.isolation import ISOLATION_OFF, SiteUsers
from client.settings import SiteSettings
from client.site_log import start_logging
from client.supernode import base_environment, supernode_spec
from client.supervisor import ChildSpec, Supervisor
from common.errors import InputError

_log = logging.getLogger(__name__)

_SPARE_SECONDS = 15.0
"""What the agent has beyond its `stop_seconds` before it is killed."""


def run_site(settings: SiteSettings, *, supernode: bool = True) -> int:
    """Run a site until SIGTERM or SIGINT.

    Args:
        settings: The site file.
        supernode: Whether to run the SuperNode too.

    Returns:
        The exit code.

    Raises:
        FedwardError: The site file cannot be used; nothing was started.
    """
    start_logging(site=settings.site.name, process="supervisor")
    users = SiteUsers.of(settings)
    _require_able(settings, users, supernode)
    others = [supernode_spec(settings, users)] if supernode else []
    if os.geteuid() == 0:
        _prepare_socket_folder(settings, users)
    if not users.isolated:
        _log.warning("%s", ISOLATION_OFF)
    stop_seconds = settings.agent.stop_seconds + _SPARE_SECONDS
    return Supervisor(_agent_spec(settings, users), others, stop_seconds=stop_seconds).run()


def _agent_spec(settings: SiteSettings, users: SiteUsers) -> ChildSpec:
    """Return how the agent is started."""
    # -P: what lies in the working folder is not imported.
    command = [sys.executable, "-P", "-m", "client.cli", "agent", "--site", str(settings.path)]
    return ChildSpec(
        name="agent",
        command=command,
        environment=base_environment(users.agent) | _of_torch(),
        user=users.agent,
        gid=users.gid,
        folder=settings.path.parent,
        ready=True,
    )


def _of_torch() -> dict[str, str]:
    """Return the variables that choose devices and the place of downloaded encoders."""
    prefixes = ("CUDA_", "NVIDIA_", "HF_", "HUGGINGFACE_", "PYTORCH_", "TORCH_", "LD_LIBRARY_PATH")
    return {name: value for name, value in os.environ.items() if name.startswith(prefixes)}


def _require_able(settings: SiteSettings, users: SiteUsers, supernode: bool) -> None:
    """Raise if this process cannot start what it is asked to start."""
    if supernode and users.isolated and os.geteuid() != 0:
        raise InputError(
            f"{settings.path}: agent.supernode_user is {users.supernode.name}, and root alone can start a process as "
            "another user; start `fedward-site run` as root with agent.user set, or with --supernode none and run "
            f"flower-supernode as {users.supernode.name} yourself."
        )
    if users.agent.uid == 0 and users.isolated:
        _log.warning("The agent runs as root; name a user for it as agent.user.")


def _prepare_socket_folder(settings: SiteSettings, users: SiteUsers) -> None:
    """Make the socket's folder as root, where the agent's user may not."""
    folder = settings.agent.socket.parent
    if folder.exists():
        return
    folder.mkdir(parents=True, mode=0o700)
    os.chown(folder, users.agent.uid, users.agent.gid if users.gid is None else users.gid)
    folder.chmod(FOLDER_MODE)
