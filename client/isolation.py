"""Agent and SuperNode as two users: who they are, and a check that the one's files are closed to the other."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from client.settings import SiteSettings
from common.errors import InputError, PlanError

ISOLATION_OFF = (
    "Isolation is off: agent and SuperNode run as one user, so that code which the server ships could read the "
    "site's records and keys. Name a user of its own as agent.supernode_user; see docs/site.md."
)


@dataclass(frozen=True, kw_only=True)
class HostUser:
    """A user of this host.

    Attributes:
        name: As in the user database.
        uid: The user's number.
        gid: Its primary group.
        groups: All its groups.
        home: Its home folder.
    """

    name: str
    uid: int
    gid: int
    groups: frozenset[int]
    home: str

    @classmethod
    def named(cls, setting: str, name: str) -> HostUser:
        """Look a user up.

        Raises:
            PlanError: There is none; the sentence names the setting.
        """
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            raise PlanError(f"{setting} is {name!r}; this host has no such user.") from None
        return cls._of(entry)

    @classmethod
    def current(cls) -> HostUser:
        """Return the user that this process runs as."""
        uid = os.geteuid()
        try:
            return cls._of(pwd.getpwuid(uid))
        except KeyError:
            # A container may run as a number that has no name.
            groups = frozenset({os.getegid(), *os.getgroups()})
            return cls(name=str(uid), uid=uid, gid=os.getegid(), groups=groups, home="/")

    @classmethod
    def _of(cls, entry: pwd.struct_passwd) -> HostUser:
        groups = frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid))
        return cls(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid, groups=groups, home=entry.pw_dir)

    def can_read(self, path: Path) -> bool:
        """Return whether file modes let this user read a file, or list a folder. Access lists are not asked."""
        try:
            for parent in reversed(path.resolve().parents):
                if not self._may(parent, 0o1):
                    return False
            return self._may(path, 0o4)
        except FileNotFoundError:
            return False

    def _may(self, path: Path, bit: int) -> bool:
        """Return whether the mode gives this user a permission; one class of three counts, as the kernel has it."""
        found = path.stat()
        if self.uid == 0:
            return True
        shift = 6 if found.st_uid == self.uid else 3 if found.st_gid in self.groups else 0
        return bool(stat.S_IMODE(found.st_mode) >> shift & bit)


@dataclass(frozen=True, kw_only=True)
class SiteUsers:
    """The two users of a site.

    Attributes:
        agent: Owns records, keys, ledger and spool.
        supernode: Runs the code that the server ships.
        gid: The group of the socket; None where there is one user.
    """

    agent: HostUser
    supernode: HostUser
    gid: int | None

    @property
    def isolated(self) -> bool:
        """Whether they are two."""
        return self.agent.uid != self.supernode.uid

    @classmethod
    def of(cls, settings: SiteSettings) -> SiteUsers:
        """Return the users that a site file names; the agent's is the process's own unless root starts it.

        Raises:
            PlanError: A user or group is unknown, or two users have no group for the socket.
        """
        table, current = settings.agent, HostUser.current()
        agent = HostUser.named("agent.user", table.user) if table.user else current
        if agent.uid != current.uid and current.uid != 0:
            raise PlanError(
                f"{settings.path}: agent.user is {agent.name!r} and this is {current.name!r}; start it as "
                f"{agent.name} or as root."
            )
        named = table.supernode_user
        supernode = HostUser.named("agent.supernode_user", named) if named else agent
        gid = _group(table.socket_group) if table.socket_group else None
        if agent.uid != supernode.uid and gid is None:
            raise PlanError(
                f"{settings.path}: agent.supernode_user is another user than the agent's, and agent.socket_group "
                "is empty; name a group that both are members of."
            )
        return cls(agent=agent, supernode=supernode, gid=gid)

    def require_closed(self, settings: SiteSettings) -> None:
        """Raise if the SuperNode's user could read what is the agent's alone.

        Raises:
            InputError: It could; the sentence names the first such file.
        """
        if not self.isolated:
            return
        for path in _private_files(settings):
            if self.supernode.can_read(path):
                raise InputError(
                    f"{path} can be read by {self.supernode.name}, the user of the SuperNode; give it to "
                    f"{self.agent.name} alone ('chmod -R go-rwx' on it or on its folder)."
                )


def _group(name: str) -> int:
    """Look a group up."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise PlanError(f"agent.socket_group is {name!r}; this host has no such group.") from None


def _private_files(settings: SiteSettings) -> Iterator[Path]:
    """Yield what must be closed to the SuperNode's user."""
    yield settings.keys.identity
    if settings.policy is not None:
        yield settings.policy.approvals
    if settings.ledger is not None:
        yield from (settings.ledger.path, settings.ledger.witness)
    if settings.agent.log is not None:
        yield settings.agent.log
    for folder in (settings.site.data, settings.site.spool):
        yield from _tree(folder)


def _tree(folder: Path) -> Iterable[Path]:
    """Yield a folder, if it can be entered by anybody, and everything in it."""
    yield folder
    yield from folder.rglob("*")
