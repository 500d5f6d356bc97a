"""A whole federation's folders on one machine, made as its operators would make them: keys, enrolment, approval.

```
OUT/
├── server/          what `fedward-server up --config server/server.toml` needs
└── site-1/          one folder a site, for `fedward-site run --site site-1/site.toml`
```

For trials and measurements: here one hand holds every key.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from client.declaration import declare_account
from client.enrolment import enrol
from client.plan_approval import PlanApproval
from client.settings import read_settings
from client.site_files import plan_files
from common.accounting import RDPFilter
from common.files import write_atomically
from common.ingestion import Dataset
from common.plan import Plan, Privacy
from common.private_plan import most_trainings, round_mechanism, whole_epsilon
from server.enrolment import accept_requests
from server.pki import init_pki
from simulation.engine import split_notes
from simulation.sites import write_notes

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class LocalFederation:
    """The folders of a federation.

    Attributes:
        server: The server's folder, with `server.toml`.
        sites: The sites' folders, each with `site.toml`.
        port: Where the server's proxy listens.
    """

    server: Path
    sites: tuple[Path, ...]
    port: int

    @property
    def config(self) -> Path:
        """The server's file."""
        return self.server / "server.toml"

    @property
    def out(self) -> Path:
        """The run's folder."""
        return self.server / "runs" / "first"


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((LOOPBACK, 0))
        return [one.getsockname()[1] for one in sockets]


def write_federation(
    plan: Plan,
    data: Dataset,
    out: Path,
    *,
    hosts: Sequence[str] = (LOOPBACK,),
    listen: str = LOOPBACK,
    port: int | None = None,
    through: int | None = None,
) -> LocalFederation:
    """Divide a data set over sites as the plan's `[simulation]` says, and write every party's folder.

    Under a private plan each site has a policy that allows it, a ledger, a declared population and an approval.

    Args:
        plan: The plan; it is bound to the roster of the new sites.
        data: Training notes to divide; the server's development and test notes.
        out: An empty folder.
        hosts: The names or addresses that the server's certificate is for; sites use the first.
        listen: The address that the server listens on.
        port: The port that the server listens on; a free one by default.
        through: The port that sites connect to, where it is not the server's own.
    """
    free, link_port = free_ports(2)
    port = port or free
    fed = out / "server"
    init_pki(fed, hosts, port=port)
    shares = split_notes(plan, data.train)
    sites = tuple(out / f"site-{number}" for number in range(1, len(shares) + 1))
    for site, notes in zip(sites, shares, strict=True):
        enrol(name=site.name, server=f"{hosts[0]}:{through or port}", out=site, public_units=len(notes))
        (site / "data").mkdir(mode=0o700)
        write_notes(site / "data" / "train.jsonl", notes)
    draft = out / "draft.toml"
    write_atomically(draft, plan.to_toml())
    accept_requests([site / "enrolment.json" for site in sites], fed, plan=draft)
    for site in sites:
        _write_site(site, fed, plan, f"{hosts[0]}:{through or port}")
    (fed / "data").mkdir()
    for split in ("devel", "test"):
        write_notes(fed / "data" / f"{split}.jsonl", getattr(data, split))
    server = {"listen": f"{listen}:{port}", "pki": ".", "state": "state", "superlink_port": link_port}
    run = {"plan": "plan.toml", "roster": "roster.toml", "data": "data", "out": "runs/first"}
    write_atomically(fed / "server.toml", tomli_w.dumps({"server": server, "run": run}))
    return LocalFederation(server=fed, sites=sites, port=port)


def _write_site(site: Path, fed: Path, plan: Plan, address: str) -> None:
    """Write a site's own file; under a private plan also declare its population and approve the plan."""
    path = site / "site.toml"
    table = {
        "site": {
            "name": site.name,
            "data": "data",
            "spool": "spool",
            "roster": str(fed / "roster.toml"),
            "plan": str(fed / "plan.toml"),
            "device": "cpu",
        },
        "keys": {"identity": "identity.pem"},
        "agent": {"log": "agent.log"},
        "server": {"address": address, "ca": str(fed / "ca.pem"), "supernode_key": "supernode.key"},
    }
    if plan.privacy is None:
        write_atomically(path, tomli_w.dumps(table))
        return
    write_atomically(path, tomli_w.dumps(table | _consent(plan, plan.privacy)))
    declare_account(read_settings(path), create=True)
    PlanApproval.of(plan_files(path, plan=None, roster=None, key=None, policy=None)).give()


def _consent(plan: Plan, privacy: Privacy) -> dict[str, dict[str, object]]:
    """Return a policy and a ledger that a private plan, with its reserve, fits into."""
    trainings = [round_mechanism(plan)] * most_trainings(plan)
    # As the ledger counts, which is more strictly than the plan does.
    spent = RDPFilter(epsilon=1.0, delta=privacy.delta).spent(trainings)
    policy = {
        "max_epsilon": max(spent, whole_epsilon(plan).epsilon),
        "max_delta": privacy.delta,
        "min_noise_multiplier": 0.1,
        "required_unit": privacy.unit,
        "approvals": "approvals.json",
    }
    ledger = {
        "path": "ledger/ledger.sqlite",
        "witness": "witness/witness.json",
        "account": "trial",
        "unit": privacy.unit,
        "delta": privacy.delta,
        "declaration": "All records of this trial's site.",
    }
    return {"policy": policy, "ledger": ledger}
