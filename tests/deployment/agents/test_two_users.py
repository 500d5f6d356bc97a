"""Root drops to two users: the relay's can ask the agent, and read nothing of what the agent keeps."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import pytest
import tomli_w

import common

ROOT = Path(common.__file__).resolve().parents[1]
AGENT, RELAY, GROUP = "daemon", "nobody", "www-data"

PROBE = """
import json, os, sys
from pathlib import Path
from client.agent_client import ask_agent
from common.messages import Envelope
site, names = Path(sys.argv[1]), sys.argv[2:]
opened = []
for name in names:
    try:
        os.listdir(site / name) if name.endswith("/") else (site / name).read_bytes()
        opened.append(name)
    except PermissionError:
        pass
reply = ask_agent(site.parent / "run" / "agent.sock", Envelope(kind="hello"), timeout=60)
print(json.dumps({"uid": os.getuid(), "opened": opened, "reply": dict(reply.header)}))
"""


def python_of(user: str) -> str | None:
    """Return a Python of this version that the user can run; one below /root cannot be."""
    for program in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}", "/usr/local/bin/python3"):
        code = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]!r})"
        try:
            if not subprocess.run([program, "-I", "-c", code], user=user, group=user_group(user)).returncode:
                return program
        except (OSError, KeyError):
            continue
    return None


def user_group(user: str) -> int:
    """Return a user's primary group."""
    import pwd

    return pwd.getpwnam(user).pw_gid


pytestmark = [
    pytest.mark.slow,
    pytest.mark.deployment,
    pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become two users"),
]


def search_path() -> str:
    """Return what another Python needs to find the installed packages and this repository."""
    return os.pathsep.join([str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))])


@pytest.fixture
def running(make_sites, tmp_path, tiny_encoder):
    """A site whose agent runs as one user; returns its folder and the Python that another user can run."""
    python = python_of(RELAY)
    if python is None:
        pytest.skip("no Python that another user can run")
    # Not below pytest's own folder, which every session of pytest closes to all users but its own.
    home = Path(tempfile.mkdtemp(prefix="fedward-two-"))
    home.chmod(0o755)
    shutil.copytree(tiny_encoder, home / "encoder")
    for one in (home / "encoder", *(home / "encoder").rglob("*")):
        one.chmod(0o755 if one.is_dir() else 0o644)
    (made, *_) = make_sites(3, federation__rounds=2, privacy__steps=4, model__encoder=str(home / "encoder"))
    site = home / "site"
    shutil.copytree(made, site)
    for name in ("plan.toml", "roster.toml"):
        shutil.copy(made.parent / name, home / name)
        (home / name).chmod(0o644)
    path = site / "site.toml"
    table = tomllib.loads(path.read_text("utf-8"))
    table["agent"] = {
        "socket": str(home / "run" / "agent.sock"),
        "user": AGENT,
        "supernode_user": RELAY,
        "socket_group": GROUP,
    }
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    for one in (site, *site.rglob("*")):
        shutil.chown(one, AGENT, user_group(AGENT))
        one.chmod(0o711 if one.is_dir() else 0o600)
    environment = {"PYTHONPATH": search_path(), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    log = (tmp_path / "run.log").open("w+")
    process = subprocess.Popen(
        [python, "-P", "-m", "client.cli", "run", "--site", str(path), "--supernode", "none"],
        env=environment,
        cwd=home,
        stderr=log,
        start_new_session=True,
    )
    until = time.monotonic() + 300
    while not (home / "run" / "agent.sock").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.2)
    assert (home / "run" / "agent.sock").exists(), (tmp_path / "run.log").read_text()[-3000:]
    yield site, python, environment
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    log.close()
    shutil.rmtree(home)


def probe(site, python, environment, *names):
    """Ask as the relay's user."""
    import grp

    ran = subprocess.run(
        [python, "-c", PROBE, str(site), *names],
        env=environment,
        cwd="/",
        user=RELAY,
        group=user_group(RELAY),
        extra_groups=[grp.getgrnam(GROUP).gr_gid],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_the_relays_user_reads_nothing_of_the_agents(running):
    site, python, environment = running
    names = [
        "identity.pem", "data/train.jsonl", "data/", "ledger/ledger.db", "witness/head.json", "approvals.json",
        "spool/", "spool/agent.lock", "spool/audit.jsonl",
    ]  # fmt: skip
    for name in names:
        assert (site / name).exists(), name
    found = probe(site, python, environment, *names)
    assert found["uid"] != 0
    assert found["opened"] == []
    assert (found["reply"]["site"], found["reply"]["isolation"]) == ("site-1", "users")
    # Planted: a file that is left open is read, so the probe can tell.
    (site / "identity.pem").chmod(0o644)
    assert probe(site, python, environment, "identity.pem")["opened"] == ["identity.pem"]


def test_an_agent_whose_key_others_can_read_does_not_start(running):
    site, python, environment = running
    (site / "data" / "train.jsonl").chmod(0o644)
    path = site / "site.toml"
    table = tomllib.loads(path.read_text("utf-8"))
    table["site"]["spool"] = "spool2"
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    table["ledger"] |= {"path": "ledger2/ledger.db", "witness": "witness2/head.json"}
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    subprocess.run(
        [python, "-P", "-m", "client.cli", "declare", "--site", str(path), "--create", "--yes"],
        env=environment,
        user=AGENT,
        group=user_group(AGENT),
        check=True,
        capture_output=True,
        umask=0o077,
    )
    ran = subprocess.run(
        [python, "-P", "-m", "client.cli", "run", "--site", str(path), "--supernode", "none"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 2
    assert "train.jsonl can be read by nobody, the user of the SuperNode" in ran.stderr.replace("\n", " ")
