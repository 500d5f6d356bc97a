"""A site under a private plan: charge, then train, then spool; no refund, no training without a charge."""

import json
import os
import signal

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client import private_round
from client.approvals import Approvals
from client.ledger import Account, Ledger, LifetimeLimit
from client.policy import Policy
from client.private_round import Budget
from client.private_trainer import PrivateTrainer
from client.site import Site
from common.audit_log import verify
from common.errors import PlanError, PolicyError
from common.host import ModelHost
from common.messages import HELLO, TRAIN, UPLOAD, Envelope
from common.parameters import vector_hash
from common.roster import Member, Roster

PRIVATE = {
    "privacy__q": 1.0,
    "privacy__steps": 2,
    "privacy__noise_multiplier": 1.0,
    "privacy__reserve_rounds": 1,
}
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)


@pytest.fixture(scope="module")
def plan(make_plan):
    return make_plan(**PRIVATE)


@pytest.fixture(scope="module")
def host(plan):
    return ModelHost.build(plan, device="cpu")


@pytest.fixture
def open_site(tmp_path, plan, host, make_notes):
    """A function that opens the one site; what it has on the disk stays from call to call."""
    notes = make_notes(6)
    opened = []

    def build(*, changed_plan=plan, limit=100.0, approved=None, on_stage=lambda stage: None, notes=notes):
        while opened:
            opened.pop().close()
        database, witness = tmp_path / "ledger" / "l.db", tmp_path / "witness" / "w.json"
        if not database.exists():
            database.parent.mkdir()
            witness.parent.mkdir()
            Ledger.create(path=database, witness=witness, key=KEY)
        ledger = Ledger(
            path=database,
            witness=witness,
            key=KEY,
            limit=LifetimeLimit(max_epsilon=limit, max_delta=1e-5),
            on_stage=on_stage,
        )
        opened.append(ledger)
        if not ledger.spent():
            ledger.declare(Account(name="records", unit="record", delta=1e-5, declaration="Everybody."))
        policy = Policy(
            max_epsilon=100.0,
            max_delta=1e-5,
            approvals=tmp_path / "approvals.json",
            required_unit="record",
            max_q=1.0,
            min_cohort=1,
            secure_aggregation_mandatory=False,
        )
        budget = Budget(
            ledger=ledger,
            account="records",
            policy=policy,
            approved={changed_plan.hash} if approved is None else approved,
        )
        site = Site(
            name="a",
            plan=changed_plan,
            roster=roster(),
            notes=notes,
            host=host,
            spool=tmp_path / "spool",
            identity_key=KEY,
            budget=budget,
        )
        return site, ledger

    yield build
    while opened:
        opened.pop().close()


def roster():
    public = KEY.public_key().public_bytes_raw()
    return Roster((Member(name="a", identity_key=public, public_units=50),))


def train_request(plan, vector, server_round=1, run_id="run1", **header):
    return Envelope(
        kind=TRAIN,
        header={
            "plan_hash": plan.hash,
            "run_id": run_id,
            "round": server_round,
            "model_hash": vector_hash(vector),
            **header,
        },
        arrays={"model": vector},
    )


def charges(ledger):
    return sum(budget.charges for budget in ledger.spent())


def test_the_charge_comes_before_the_training_and_the_record_after(open_site, plan, host, monkeypatch):
    events = []
    for owner, name in ((Ledger, "charge"), (Ledger, "record_spooled"), (PrivateTrainer, "train")):
        real = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *a, _real=real, _name=name, **k: events.append(_name) or _real(*a, **k)
        )
    site, ledger = open_site()
    reply = site.handle(train_request(plan, host.read()))
    assert reply.refusal is None
    assert events == ["charge", "train", "record_spooled"]
    assert charges(ledger) == 1


def test_the_update_holds_the_delta_alone(open_site, plan, host):
    site, _ = open_site()
    vector = host.read()
    site.handle(train_request(plan, vector))
    request = train_request(plan, vector)
    reply = site.handle(Envelope(kind=UPLOAD, header=request.header))
    assert set(reply.arrays) == {"delta"}
    assert reply.arrays["delta"].shape == vector.shape


def test_a_spooled_update_is_sent_again_for_nothing(open_site, plan, host, monkeypatch):
    site, ledger = open_site()
    vector = host.read()
    site.handle(train_request(plan, vector))
    monkeypatch.setattr(PrivateTrainer, "train", lambda *_, **__: pytest.fail("trained again"))
    again = site.handle(train_request(plan, vector))
    site, ledger = open_site()
    restarted = site.handle(train_request(plan, vector))
    assert again.refusal is None
    assert restarted.refusal is None
    assert charges(ledger) == 1


def test_a_lost_update_is_charged_again_up_to_the_reserve(open_site, plan, host):
    site, ledger = open_site()
    vector = host.read()
    codes = []
    for _ in range(3):
        codes.append(site.handle(train_request(plan, vector)).refusal)
        for update in site.spool_folder.glob("*.update"):
            update.unlink()
    assert codes == [None, None, "refused-ledger"]
    assert charges(ledger) == 2


def test_an_update_that_was_never_recorded_is_charged_again(open_site, plan, host, monkeypatch):
    site, ledger = open_site()
    vector = host.read()
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "record_spooled", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            site.handle(train_request(plan, vector))
    assert site.handle(train_request(plan, vector)).refusal is None
    assert charges(ledger) == 2


@pytest.mark.parametrize("stage", ["before-witness", "after-witness"])
def test_killed_between_charge_and_training_nothing_is_refunded(
    open_site, plan, host, tmp_path, monkeypatch, stage
):
    open_site()[1].close()
    vector, trained = host.read(), tmp_path / "trained"
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(PrivateTrainer, "train", lambda *_, **__: trained.touch())
        site, _ = open_site(
            on_stage=lambda reached: os.kill(os.getpid(), signal.SIGKILL) if reached == stage else None
        )
        site.handle(train_request(plan, vector))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert not trained.exists()
    site, ledger = open_site()
    assert charges(ledger) == 1
    assert site.handle(train_request(plan, vector)).refusal is None
    assert charges(ledger) == 2


def test_a_round_that_the_budget_does_not_cover_touches_no_record(open_site, plan, host, monkeypatch):
    monkeypatch.setattr(PrivateTrainer, "train", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr(private_round.SiteRecords, "examples", lambda self: pytest.fail("read records"))
    monkeypatch.setattr(private_round.SiteRecords, "fingerprint", lambda self: pytest.fail("read records"))
    site, ledger = open_site(limit=0.01)
    assert site.handle(train_request(plan, host.read())).refusal == "refused-ledger"
    assert charges(ledger) == 0


def test_records_without_the_units_id_cost_no_charge(open_site, make_plan, make_notes, host, tmp_path):
    plan = make_plan(**PRIVATE, privacy__unit="patient")
    site, ledger = open_site(changed_plan=plan)
    # The account is per record, so the plan is refused there; the data would be refused before that.
    assert site.handle(train_request(plan, host.read())).refusal == "bad-data"
    assert charges(ledger) == 0


@pytest.mark.parametrize("change", ["longer", "other"])
def test_a_model_that_is_not_the_rounds_costs_no_charge(open_site, plan, host, change):
    site, ledger = open_site()
    vector = host.read()
    sent = np.append(vector, np.float32(0)) if change == "longer" else vector + 1
    request = train_request(plan, sent)
    if change == "other":
        request = Envelope(kind=TRAIN, header=train_request(plan, vector).header, arrays={"model": sent})
    assert site.handle(request).refusal == "refused-protocol"
    assert charges(ledger) == 0


def test_a_retry_without_a_model_and_without_an_update_is_not_charged(open_site, plan, host):
    site, ledger = open_site()
    request = train_request(plan, host.read())
    assert site.handle(Envelope(kind=TRAIN, header=request.header)).refusal == "bad-message"
    assert charges(ledger) == 0


def test_the_ledgers_head_travels_and_an_echo_from_the_future_is_refused(open_site, plan, host):
    site, ledger = open_site()
    vector = host.read()
    first = site.handle(train_request(plan, vector)).header["ledger_head"]
    assert json.loads(first) == ledger.head().to_dict()
    assert site.handle(train_request(plan, vector, ledger_head=first)).refusal is None
    forged = json.dumps({**json.loads(first), "sequence": 99})
    assert site.handle(train_request(plan, vector, 2, ledger_head=forged)).refusal == "refused-ledger"
    assert site.handle(train_request(plan, vector, 2, ledger_head="[]")).refusal == "bad-message"
    assert charges(ledger) == 1


def test_the_charge_is_on_the_audit_log(open_site, plan, host):
    site, ledger = open_site()
    site.handle(train_request(plan, host.read()))
    (budget,) = ledger.spent()
    (entry,) = [one for one in verify(site.spool_folder / "audit.jsonl") if one.kind == "charge"]
    assert entry.values["plan_hash"] == plan.hash
    assert entry.values["epsilon"] == budget.spent.epsilon
    assert entry.values["recharge"] is False


def test_a_private_plan_needs_a_ledger(plan, host, make_notes, tmp_path):
    with pytest.raises(PolicyError, match="no privacy ledger to charge"):
        Site(
            name="a",
            plan=plan,
            roster=roster(),
            notes=make_notes(2),
            host=host,
            spool=tmp_path,
            identity_key=KEY,
        )


def test_a_private_plan_needs_approval(open_site):
    with pytest.raises(PolicyError, match="has not approved this plan"):
        open_site(approved=set())


def test_an_approved_plan_is_taken_from_the_signed_file(open_site, plan, tmp_path):
    from client.plan_facts import facts_of

    approvals = Approvals.load(tmp_path / "approvals.json", KEY.public_key())
    approvals = approvals.approve(facts_of(plan, sites=1), [], KEY)
    site, _ = open_site(approved=approvals)
    reply = site.handle(Envelope(kind=HELLO, header={"plan_hash": plan.hash}))
    assert reply.header == {"site": "a", "plan_hash": plan.hash}


def test_a_delta_that_promises_nothing_is_refused(open_site, make_plan):
    plan = make_plan(**PRIVATE, privacy__delta=0.05)
    with pytest.raises(PlanError, match=r"delta must be below one over the units, which is 0\.02"):
        open_site(changed_plan=plan)
