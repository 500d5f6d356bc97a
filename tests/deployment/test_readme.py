"""The README's "Run it for real", its own lines, on one host: a server, three sites, every process a real one."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from client.keys import load_identity_key
from common.audit_log import verify
from simulation.engine import split_notes
from simulation.local_federation import free_ports
from simulation.sites import write_notes

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SITES = ("st-mary", "st-luke", "st-anne")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.deployment,
    pytest.mark.skipif(not (BIN / "fedward-site").exists(), reason="the commands are not beside Python"),
]

PLAN = {
    "privacy__unit": "record",
    "privacy__q": 0.5,
    "privacy__steps": 3,
    "privacy__noise_multiplier": 1.0,
    "privacy__reserve_rounds": 1,
    "secure_aggregation__enabled": True,
    "federation__rounds": 3,
    "federation__minimum_cohort": 3,
    "federation__train_deadline": 120.0,
    "federation__exchange_deadline": 120.0,
    "simulation__sites": len(SITES),
}
FILLED_IN = {
    "# max_epsilon =": "max_epsilon = 500.0",
    "# max_delta =": "max_delta = 1e-5",
    "# required_unit = .*": 'required_unit = "record"',
    r"# \[ledger\]": "[ledger]",
    "# path = ": "path = ",
    '# witness = "[^"]*"': 'witness = "backup/witness.json"',
    "# account = ": "account = ",
    '# unit = "patient"': 'unit = "record"',
    "# delta = ": "delta = ",
    "# declaration = ": "declaration = ",
}


def readme_commands() -> tuple[list[str], list[str]]:
    """Return the README's lines for the server and for a site, comments left out."""
    text = (ROOT / "README.md").read_text("utf-8")
    block = re.search(r"## Run it for real\n.*?```\n(.*?)```", text, re.DOTALL)
    server, site = block.group(1).split("# at each site\n")
    return tuple(
        [shlex.join(words) for line in part.splitlines() if (words := shlex.split(line, comments=True))]
        for part in (server, site)
    )


def test_the_readme_has_all_commands():
    server, site = readme_commands()
    assert [" ".join(line.split()[:2]) for line in server] == [
        "fedward-server pki",
        "fedward-server enrol",
        "cp -r",
        "fedward-server up",
    ]
    assert [line.split()[1] for line in site if line.startswith("fedward")] == [
        "enrol",
        "enrol",
        "declare",
        "approve",
        "run",
        "budget",
    ]


@dataclass
class Hosts:
    """Machines as folders side by side; what one operator sends another is copied."""

    folder: Path
    port: int
    link_port: int
    processes: Any

    def host(self, name: str) -> Path:
        return self.folder / name

    def localised(self, line: str, name: str) -> str:
        """Return a README line with this machine's address, port and name, its glob unquoted again."""
        line = line.replace("fedward.example.org:9443", f"127.0.0.1:{self.port}")
        line = line.replace("fedward.example.org", "127.0.0.1").replace("st-mary", name)
        return line.replace("--public-units 4000", "--public-units 12").replace(
            "'*/enrolment.json'", "*/enrolment.json"
        )

    def begin(self, name: str, line: str, *, log: str):
        """Start one line on one machine; every question is answered with yes."""
        if " run " in line or " up " in line:
            how = "exec "
        elif line.startswith("fedward"):
            how = "yes | "
        else:
            how = ""
        script = f"cd {shlex.quote(str(self.host(name)))} && {how}{self.localised(line, name)}"
        shell = ["env", "COLUMNS=200", f"PATH={BIN}:{os.environ['PATH']}", "bash", "-c"]
        return self.processes.start(log, *shell, script)

    def do(self, name: str, line: str) -> str:
        """Run one line to its end."""
        log = f"{name}-{len(self.processes.processes)}"
        code = self.begin(name, line, log=log).wait(timeout=300)
        assert code == 0, f"{line}\n{self.processes.log(log)}"
        return self.processes.log(log)

    def supernode_of(self, name: str) -> int:
        found = re.findall(r"supernode was started as process (\d+)", self.processes.log(name))
        return int(found[-1])


@pytest.fixture
def hosts(tmp_path, processes, make_plan, make_data):
    folder = tmp_path / "w"
    port, link_port = free_ports(2)
    for name in ("server", *SITES):
        (folder / name).mkdir(parents=True)
    plan, data = make_plan(**PLAN), make_data(train=12 * len(SITES))
    (folder / "server" / "plan.toml").write_text(plan.to_toml(), "utf-8")
    (folder / "server" / "my-test-set").mkdir()
    for split in ("devel", "test"):
        write_notes(folder / "server" / "my-test-set" / f"{split}.jsonl", getattr(data, split))
    for name, notes in zip(SITES, split_notes(plan, data.train), strict=True):
        (folder / name / "my-records").mkdir()
        write_notes(folder / name / "my-records" / "train.jsonl", notes)
    federation = processes(folder, port, [folder / name / "site" for name in SITES])
    return Hosts(folder=folder, port=port, link_port=link_port, processes=federation)


def fill_in(path: Path, changes: dict[str, str]) -> None:
    text = path.read_text("utf-8")
    for pattern, value in changes.items():
        text, count = re.subn(pattern, value, text)
        assert count, f"{path} has nothing like {pattern!r}."
    path.write_text(text, "utf-8")


def test_run_it_for_real_as_the_readme_says(hosts):
    """Enrolment, approval, TLS, two ends' authentication, secure aggregation, privacy; one SuperNode killed at work."""
    server, site = readme_commands()
    fed = hosts.host("server") / "federation"
    hosts.do("server", server[0])
    # Ports of this test's own, and a folder that the fixture can find.
    fill_in(
        fed / "server.toml", {"0.0.0.0:9443": f"127.0.0.1:{hosts.port}", "= 9092": f"= {hosts.link_port}"}
    )
    for name in SITES:
        hosts.do(name, site[0])
        (hosts.host("server") / name).mkdir()
        shutil.copy(hosts.host(name) / "site" / "enrolment.json", hosts.host("server") / name)
    hosts.do("server", server[1])
    for name in SITES:
        shutil.copy(fed / "bundles" / f"{name}.bundle.json", hosts.host(name))
        hosts.do(name, site[1])
        hosts.do(name, site[2])
        fill_in(hosts.host(name) / "site" / "site.toml", FILLED_IN)
        hosts.do(name, site[3])
        assert "adds noise of 1 times that bound" in hosts.do(name, site[4])
    hosts.do("server", server[2])
    up = hosts.begin("server", server[3], log="server")
    running = {name: hosts.begin(name, site[5], log=name) for name in SITES}
    out = fed / "runs" / "first"

    def at(server_round: int) -> bool:
        path = out / "metrics.jsonl"
        return path.exists() and len(path.read_text("utf-8").splitlines()) >= server_round

    hosts.processes.server = up
    hosts.processes.wait("round 1", lambda: at(1), seconds=600)
    # In the middle of round 2: what the SuperNode had been given dies with it, and its site's agent lives.
    os.kill(hosts.supernode_of("st-luke"), signal.SIGKILL)
    code, _ = hosts.processes.finish(up, seconds=900)
    assert code == 0, hosts.processes.logs()
    result = json.loads((out / "result.json").read_text("utf-8"))
    assert (result["rounds"], result["sites"], result["secure_aggregation"]) == (3, 3, True)
    assert 0 <= result["micro_f1"] <= 1
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [sorted(row["sites"]) for row in rows] == [sorted(SITES)] * 3
    assert (out / "model" / "config.json").is_file()
    assert "supernode was killed by SIGKILL; it is started again" in hosts.processes.log("st-luke")
    for name in SITES:
        # No round was lost, none was trained twice, and none was charged twice.
        assert rounds_audited(hosts.host(name) / "site") == [1, 2, 3]
        running[name].terminate()
        assert running[name].wait(timeout=60) == 0
        charged = re.search(r"oncology │ \w+ +│ \w+ +│ (\d) +│ (\d) ", hosts.do(name, site[6]))
        assert charged.group(1) == charged.group(2)


def rounds_audited(site: Path) -> list[int]:
    """Return the rounds that were charged by a site's audit log, whose chain and signatures hold."""
    key = load_identity_key(site / "identity.pem").public_key()
    entries = verify(site / "spool" / "audit.jsonl", key=key)
    return [one.values["server_round"] for one in entries if one.values.get("stage", one.kind) == "charge"]
