"""Two users: who they are, what a user may read, and what is said when it is too much."""

import os
import tempfile
import tomllib
from pathlib import Path

import pytest
import tomli_w

from client.isolation import HostUser, SiteUsers
from client.settings import read_settings
from common.errors import InputError, PlanError

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="root alone owns files of other users")


def user(uid, *groups):
    return HostUser(name=f"user-{uid}", uid=uid, gid=uid, groups=frozenset({uid, *groups}), home="/")


@pytest.fixture
def reachable():
    """A folder that every user gets to; pytest's own are closed, and closed again by every other session."""
    with tempfile.TemporaryDirectory(prefix="fedward-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        folder.chmod(0o700)


@pytest.fixture
def site(reachable):
    """A site file whose records, key and spool are there, open to everybody."""
    for name in ("records", "spool"):
        (reachable / name).mkdir()
    for name in ("records/train.jsonl", "identity.pem", "spool/audit.jsonl"):
        (reachable / name).write_text("{}")
    path = reachable / "site.toml"
    names = {"name": "st-mary", "data": "records", "roster": "r.toml", "spool": "spool", "plan": "p.toml"}
    path.write_text(tomli_w.dumps({"site": names, "keys": {"identity": "identity.pem"}}), encoding="utf-8")
    return path


def change(file, **agent):
    table = tomllib.loads(file.read_text("utf-8")) | {"agent": agent}
    file.write_text(tomli_w.dumps(table), encoding="utf-8")
    return read_settings(file)


def test_one_user_is_no_isolation(site):
    users = SiteUsers.of(read_settings(site))
    assert users.agent == users.supernode
    assert not users.isolated
    users.require_closed(read_settings(site))


@pytest.mark.parametrize(
    ("agent", "said"),
    [
        ({"supernode_user": "no-such-user"}, "agent.supernode_user is 'no-such-user'"),
        ({"user": "no-such-user"}, "agent.user is 'no-such-user'"),
        ({"socket_group": "no-such-group"}, "agent.socket_group is 'no-such-group'"),
        ({"supernode_user": "nobody"}, "agent.socket_group is empty"),
    ],
)
def test_users_that_cannot_be(site, agent, said):
    with pytest.raises(PlanError, match=said):
        SiteUsers.of(change(site, **agent))


@ROOT_ONLY
def test_two_users(site):
    users = SiteUsers.of(change(site, user="daemon", supernode_user="nobody", socket_group="daemon"))
    assert users.isolated
    assert (users.agent.name, users.supernode.name) == ("daemon", "nobody")


@pytest.mark.parametrize(
    ("mode", "owner", "group", "reader", "can"),
    [
        (0o600, 1, 1, user(1), True),
        (0o600, 1, 1, user(2), False),
        (0o604, 1, 1, user(2), True),
        (0o640, 1, 7, user(2, 7), True),
        (0o604, 1, 7, user(2, 7), False),
        (0o044, 1, 7, user(1), False),
        (0o000, 1, 1, user(0), True),
    ],
)
@ROOT_ONLY
def test_can_read_is_what_the_kernel_says(reachable, mode, owner, group, reader, can):
    file = reachable / "file"
    file.write_text("x")
    os.chown(file, owner, group)
    file.chmod(mode)
    assert reader.can_read(file) is can
    reachable.chmod(0o700)
    assert reader.can_read(file) is (reader.uid == 0)
    assert not reader.can_read(reachable / "absent")


@ROOT_ONLY
@pytest.mark.parametrize("open_one", ["identity.pem", "records/train.jsonl", "spool/audit.jsonl", "records"])
def test_what_the_supernodes_user_could_read_is_named(site, open_one):
    """Planted: each file in turn is left open to others."""
    settings = change(site, user="root", supernode_user="nobody", socket_group="daemon")
    for path in sorted(site.parent.rglob("*")):
        path.chmod(0o711 if path.is_dir() else 0o600)
    SiteUsers.of(settings).require_closed(settings)
    path = site.parent / open_one
    path.chmod(0o755 if path.is_dir() else 0o604)
    with pytest.raises(InputError, match=f"{open_one} can be read by nobody"):
        SiteUsers.of(settings).require_closed(settings)
