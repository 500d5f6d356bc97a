"""`kill -9` of real agents at every moment of a round, a disk that is full, and what the ledger says afterwards."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import numpy as np
import pytest

from client.agent_client import ask_agent
from client.app import make_client_app
from client.keys import load_identity_key
from client.ledger import Ledger
from client.settings import read_settings
from common.audit_log import verify
from common.errors import AgentError
from common.host import ModelHost
from common.ingestion import read_dataset
from common.messages import HELLO, LEDGER_HEAD, TRAIN, Envelope
from common.parameters import vector_hash
from common.plan import read_plan
from common.roster import read_roster
from server.federation import FederationJob, open_run, run_federation
from simulation.grid import InProcessGrid
from simulation.watch import RunWatch

pytestmark = [pytest.mark.slow, pytest.mark.deployment]

MOMENTS = ("charged", "training", "spooled", "share_keys", "upload", "confirm", "unmask")


def ledger_of(site):
    """Return (rounds, charges, epsilon spent) of a site's account, as its verified ledger says."""
    settings = read_settings(site / "site.toml")
    key = load_identity_key(settings.keys.identity)
    table = settings.ledger
    with Ledger(
        path=table.path, witness=table.witness, key=key, limit=settings.policy.limit, read_only=True
    ) as ledger:
        (account,) = ledger.spent()
        jobs = ledger.by_job()
        return sum(job.rounds for job in jobs), account.charges, account.spent.epsilon


def wait_until_dead(nursery, site):
    """Wait until a site's agent has ended."""
    until = time.monotonic() + 60
    while nursery.lives(site):
        assert time.monotonic() < until, "The agent goes on."
        time.sleep(0.02)


def socket_of(site):
    return site / "run" / "agent.sock"


def run(sites, out, handler_of):
    """Run the server's own code against the agents; Flower's transport alone is left out."""
    local = sites[0].parent
    plan = read_plan(local / "plan.toml")
    host = ModelHost.build(plan)
    data = read_dataset(local / "server" / "data", host.encoding.schema, required=("test",))
    by_node = [handler_of(site) for site in sites]
    app = make_client_app(lambda context: by_node[int(context.node_config["partition-id"])])
    grid = InProcessGrid(app, [site.name for site in sites])
    with open_run(plan, out, resume=False) as folder:
        job = FederationJob(
            plan=plan,
            roster=read_roster(local / "roster.toml"),
            folder=folder,
            host=host,
            devel=(),
            test=data.test,
            listener=RunWatch.silent(plan.federation.rounds),
            pullers=0,
        )
        return run_federation(grid, job)


def test_a_run_survives_a_kill_at_every_moment_of_a_round(nursery, make_sites, tmp_path):
    """One round for each moment: the agent of site-2 is killed there and started anew for the next round."""
    rounds = len(MOMENTS)
    sites = make_sites(
        5, federation__rounds=rounds, privacy__steps=2 * rounds, federation__train_deadline=600.0
    )
    victim = sites[1]
    for site in sites:
        if site != victim:
            nursery.start(site)
    deaths = []

    def handler_of(site):
        def handle(request):
            if site == victim and request.kind == TRAIN and not deaths[int(request.header["round"]) - 1 :]:
                if not deaths:
                    os.kill(nursery.running[victim], signal.SIGKILL)
                wait_until_dead(nursery, victim)
                deaths.append(MOMENTS[len(deaths)])
                nursery.start(victim, f"kill:{deaths[-1]}")
            elif site == victim and request.kind == HELLO:
                nursery.start(victim)
            return ask_agent(socket_of(site), request, timeout=120)

        return handle

    result = run(sites, tmp_path / "run", handler_of)
    assert deaths == list(MOMENTS)
    wait_until_dead(nursery, victim)
    assert result["rounds"] == rounds
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    taken = dict(zip(MOMENTS, [victim.name in row["sites"] for row in rows], strict=True))
    # What was uploaded before the kill is in the sum; what was not is not.
    assert taken == {moment: moment in ("confirm", "unmask") for moment in MOMENTS}
    assert all(len(row["sites"]) == 4 + (victim.name in row["sites"]) for row in rows)
    # Every training was charged once, whatever became of it; nothing was given back.
    assert ledger_of(victim)[:2] == (rounds, rounds)
    assert ledger_of(sites[0]) == ledger_of(victim)
    guard = next((victim / "spool").glob("*/secure-rounds.jsonl")).read_text("utf-8").splitlines()
    answers = [(one["round"], one["attempt"], one.get("stage")) for one in map(json.loads, guard)]
    assert len(set(answers)) == len(answers)
    nonces = [one["nonce"] for one in map(json.loads, guard) if "nonce" in one]
    assert len(set(nonces)) == len(nonces)
    verify(victim / "spool" / "audit.jsonl", key=load_identity_key(victim / "identity.pem").public_key())


def train(site, *, server_round=1, attempt=1, run_id="run1", **header):
    """Ask a site's agent to train a round, as a server would, and return its answer."""
    plan = read_plan(site.parent / "plan.toml")
    model = np.zeros(parameters(plan), dtype=np.float32)
    request = Envelope(
        kind=TRAIN,
        header={
            "plan_hash": plan.hash,
            "run_id": run_id,
            "round": server_round,
            "attempt": attempt,
            "nonce": os.urandom(32),
            "model_hash": vector_hash(model),
            **header,
        },
        arrays={"model": model},
    )
    return ask_agent(socket_of(site), request, timeout=120)


_sizes: dict[str, int] = {}


def parameters(plan):
    """Return the model's number of parameters."""
    if plan.hash not in _sizes:
        _sizes[plan.hash] = ModelHost.build(plan).layout.size
    return _sizes[plan.hash]


def killed(nursery, site, fault):
    """Start a site's agent, have it killed in a training, and start it anew."""
    nursery.start(site, fault)
    with pytest.raises(AgentError, match="did not answer"):
        train(site)
    wait_until_dead(nursery, site)
    nursery.start(site)


@pytest.mark.parametrize("moment", ["charged", "training", "spooled"])
def test_a_training_that_is_done_again_is_charged_again(nursery, make_sites, moment):
    (site, *_) = make_sites(3, federation__rounds=2, privacy__steps=4)
    killed(nursery, site, f"kill:{moment}")
    rounds, charges, once = ledger_of(site)
    assert (rounds, charges) == (1, 1)
    head = json.loads(train(site, attempt=2).header[LEDGER_HEAD])
    rounds, charges, twice = ledger_of(site)
    assert (rounds, charges) == (1, 2)
    assert twice > once
    # What is in the spool now is sent again for nothing.
    assert json.loads(train(site, attempt=3).header[LEDGER_HEAD]) == head
    os.kill(nursery.running[site], signal.SIGTERM)


def test_without_a_reserve_the_training_is_refused(nursery, make_sites):
    (site, *_) = make_sites(3, federation__rounds=2, privacy__steps=4, privacy__reserve_rounds=0)
    killed(nursery, site, "kill:training")
    spent = ledger_of(site)
    assert train(site, attempt=2).refusal == "refused-ledger"
    assert ledger_of(site) == spent
    # The next round goes on, charged as planned.
    assert train(site, server_round=2).refusal is None
    assert ledger_of(site)[:2] == (2, 2)
    os.kill(nursery.running[site], signal.SIGTERM)


def test_a_disk_that_is_full_at_the_charge_trains_nothing(nursery, make_sites):
    (site, *_) = make_sites(3, federation__rounds=2, privacy__steps=4)
    nursery.start(site, "full:charge")
    before = ledger_of(site)
    assert train(site).refusal == "refused-ledger"
    assert ledger_of(site) == before
    assert not list((site / "spool").glob("*.update"))
    # There is room again.
    assert train(site, attempt=2).refusal is None
    assert ledger_of(site)[:2] == (1, 1)
    os.kill(nursery.running[site], signal.SIGTERM)


def test_an_agent_that_is_stopped_gives_its_training_up_cleanly(nursery, make_sites):
    """SIGTERM: the answer is a code, the socket goes, the charge stays, and a second agent can start."""
    (site, *_) = make_sites(3, agent={"stop_seconds": 0.0}, federation__rounds=2, privacy__steps=4000)
    pid = nursery.start(site)
    answers = []
    asking = threading.Thread(target=lambda: answers.append(train(site)))
    asking.start()
    until = time.monotonic() + 60
    while ledger_of(site)[1] == 0 and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(pid, signal.SIGTERM)
    asking.join()
    assert answers[0].refusal == "stopping"
    assert ledger_of(site)[:2] == (1, 1)
    assert not list((site / "spool").glob("*.update"))
    wait_until_dead(nursery, site)
    assert not socket_of(site).exists()


def test_an_approval_that_is_taken_back_ends_the_training(nursery, make_sites):
    from client.approvals import Approvals

    (site, *_) = make_sites(3, federation__rounds=2, privacy__steps=4)
    nursery.start(site)
    assert train(site).refusal is None
    key = load_identity_key(site / "identity.pem")
    approvals = Approvals.load(site / "approvals.json", key.public_key())
    approvals.revoke(read_plan(site.parent / "plan.toml").hash, key)
    spent = ledger_of(site)
    assert train(site, server_round=2).refusal == "refused-policy"
    assert ledger_of(site) == spent
    os.kill(nursery.running[site], signal.SIGTERM)
