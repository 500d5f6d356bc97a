"""From a site file to its site: what belongs together, what is refused, and a private plan's ledger."""

import json
import os
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w

from client.approvals import Approvals
from client.declaration import declare_account, describe_account
from client.keys import load_identity_key, make_identity_key
from client.ledger import Ledger
from client.opening import open_site
from client.plan_facts import facts_of
from client.settings import read_settings
from common.errors import DataError, InputError, LedgerError, PlanError, PolicyError
from common.messages import HELLO, Envelope
from common.plan import read_plan
from common.private_plan import round_mechanism
from common.roster import Member, Roster, write_roster

POLICY = {"max_epsilon": 1.0, "max_delta": 1e-5, "approvals": "approvals.json", "required_unit": "none"}
OPEN = POLICY | {"secure_aggregation_mandatory": False, "min_cohort": 1}


@pytest.fixture
def site(tmp_path, make_plan, data_folder):
    """A site's folder with everything in it; returns its site.toml."""
    public = make_identity_key(tmp_path / "identity.pem")
    roster = Roster((Member(name="st-mary", identity_key=public, public_units=12),))
    write_roster(roster, tmp_path / "roster.toml")
    plan = make_plan(federation__roster_sha256=roster.digest().hex())
    (tmp_path / "plan.toml").write_text(plan.to_toml(), encoding="utf-8")
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "train.jsonl").write_bytes((data_folder / "train.jsonl").read_bytes())
    path = tmp_path / "site.toml"
    table = {
        "site": {
            "name": "st-mary",
            "data": "records",
            "roster": "roster.toml",
            "spool": "spool",
            "plan": "plan.toml",
            "device": "cpu",
        },
        "keys": {"identity": "identity.pem"},
    }
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    return path


def change(file: Path, section: str, **values: object) -> None:
    """Set keys of a table of the file; None removes one."""
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    changed = table.get(section, {}) | values
    table[section] = {key: value for key, value in changed.items() if value is not None}
    file.write_text(tomli_w.dumps(table), encoding="utf-8")


def opened(path: Path):
    """Open the site of a file and close it again; return it."""
    with open_site(read_settings(path)) as site:
        return site


def test_a_site_opens(site):
    with open_site(read_settings(os.path.relpath(site))) as found:
        assert found.handle(Envelope(kind=HELLO)).header["site"] == "st-mary"
        assert found.examples()


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (lambda s: change(s, "site", name="st-john"), PlanError, "no such member"),
        (lambda s: change(s, "site", roster="r.toml"), PlanError, "roster cannot be read"),
        (lambda s: change(s, "site", data="nowhere"), DataError, "is not a folder"),
        (lambda s: (s.parent / "records" / "train.jsonl").unlink(), DataError, "has no split train"),
        (lambda s: (s.parent / "identity.pem").chmod(0o644), InputError, "chmod 600"),
    ],
)
def test_what_cannot_be_opened(site, spoil, error, said):
    spoil(site)
    with pytest.raises(error, match=said):
        opened(site)
    assert not (site.parent / "spool").exists()


def test_a_key_that_the_roster_does_not_list_is_refused(site):
    make_identity_key(site.parent / "other.pem")
    change(site, "keys", identity="other.pem")
    with pytest.raises(PlanError, match=r"keys\.identity is not the key that .* lists for st-mary"):
        opened(site)


def test_an_exchanged_roster_is_refused(site):
    """A server that adds a member of its own makes another roster than the plan's."""
    key = load_identity_key(site.parent / "identity.pem").public_key().public_bytes_raw()
    ours = Member(name="st-mary", identity_key=key)
    write_roster(Roster((ours, Member(name="x", identity_key=bytes(32)))), site.parent / "roster.toml")
    with pytest.raises(PlanError, match="is for the roster with"):
        opened(site)


def test_a_plan_without_a_roster_is_refused(site, make_plan):
    (site.parent / "plan.toml").write_text(make_plan().to_toml(), encoding="utf-8")
    with pytest.raises(PlanError, match="names no roster"):
        opened(site)


def test_the_policy_wins(site):
    change(site, "policy", **POLICY)
    with pytest.raises(PolicyError, match="secure_aggregation_mandatory"):
        opened(site)


def test_a_plan_is_opened_once_it_is_approved(site):
    change(site, "policy", **OPEN)
    with pytest.raises(PolicyError, match="has not approved this plan"):
        opened(site)
    key = load_identity_key(site.parent / "identity.pem")
    plan = read_plan(site.parent / "plan.toml")
    approvals = Approvals.load(site.parent / "approvals.json", key.public_key())
    approvals.approve(facts_of(plan, sites=1), (), key)
    assert opened(site).plan.hash == plan.hash


def test_facts_of_a_private_plan(make_plan):
    plan = make_plan(
        privacy__noise_multiplier=1.0, privacy__steps=4, privacy__q=0.1, privacy__reserve_rounds=1
    )
    facts = facts_of(plan, sites=3)
    assert (facts.unit, facts.most_steps, facts.noise_multiplier) == ("record", 6, 1.0)
    assert facts.epsilon is not None
    longer = replace(plan, privacy=replace(plan.privacy, reserve_rounds=0))
    cheaper = facts_of(longer, sites=3).epsilon
    assert cheaper is not None
    assert cheaper < facts.epsilon
    target = replace(plan.privacy, noise_multiplier=0.0, target_epsilon=facts.epsilon)
    calibrated = facts_of(replace(plan, privacy=target), sites=3)
    assert calibrated.noise_multiplier == pytest.approx(1.0, rel=2e-3)


PRIVATE = {
    "privacy__unit": "record",
    "privacy__q": 0.5,
    "privacy__steps": 4,
    "privacy__noise_multiplier": 1.0,
}
LEDGER = {
    "path": "ledger/ledger.db",
    "witness": "witness/head.json",
    "account": "wards",
    "unit": "record",
    "delta": 1e-5,
    "declaration": "All records of 2026.",
}


@pytest.fixture
def private(site, make_plan):
    """The same site with a private plan that its policy lets through and its operator has approved."""
    folder = site.parent
    digest = read_plan(folder / "plan.toml").federation.roster_sha256
    plan = make_plan(federation__roster_sha256=digest, **PRIVATE)
    (folder / "plan.toml").write_text(plan.to_toml(), encoding="utf-8")
    change(site, "policy", **(OPEN | {"max_epsilon": 500.0, "required_unit": "record"}))
    change(site, "ledger", **LEDGER)
    key = load_identity_key(folder / "identity.pem")
    Approvals.load(folder / "approvals.json", key.public_key()).approve(facts_of(plan, sites=1), (), key)
    return site


def test_a_private_plan_opens_with_its_ledger(private):
    settings = read_settings(private)
    assert "epsilon 500 at delta 1e-05" in describe_account(settings)
    declare_account(settings, create=True)
    with open_site(settings) as site:
        (account,) = site.budget.ledger.spent()
        assert (account.account.name, account.charges) == ("wards", 0)
        with pytest.raises(LedgerError, match="open in another process"), open_site(settings):
            pass
    # It is closed again.
    opened(private)


def test_nothing_here_makes_a_ledger_or_an_account(private):
    """An agent that made what it does not find would begin a new budget after a ledger was deleted."""
    with pytest.raises(LedgerError):
        opened(private)
    assert not (private.parent / "ledger").exists()
    settings = read_settings(private)
    declare_account(settings, create=True)
    change(private, "ledger", account="others")
    with pytest.raises(LedgerError, match="declare the population with `fedward-site declare`"):
        opened(private)


@pytest.mark.parametrize("values", [{"declaration": "Fewer records."}, {"delta": 1e-6}, {"unit": "patient"}])
def test_an_account_stays_as_it_was_declared(private, values):
    declare_account(read_settings(private), create=True)
    change(private, "ledger", **values)
    with pytest.raises(LedgerError, match="an account stays as it was declared"):
        opened(private)


@pytest.mark.parametrize(
    ("table", "said"),
    [("policy", r"there is no \[policy\]"), ("ledger", r"there is no \[ledger\] to charge")],
)
def test_a_private_plan_needs_policy_and_ledger(private, table, said):
    content = tomllib.loads(private.read_text(encoding="utf-8"))
    del content[table]
    private.write_text(tomli_w.dumps(content), encoding="utf-8")
    with pytest.raises(PolicyError, match=said):
        opened(private)


def test_an_account_is_declared_once(private):
    declare_account(read_settings(private), create=True)
    with pytest.raises(LedgerError, match="exists already"):
        declare_account(read_settings(private))
    with pytest.raises(LedgerError):
        declare_account(read_settings(private), create=True)


@pytest.mark.parametrize("table", ["ledger", "policy"])
def test_a_declaration_needs_both_tables(private, table):
    content = tomllib.loads(private.read_text(encoding="utf-8"))
    del content[table]
    private.write_text(tomli_w.dumps(content), encoding="utf-8")
    with pytest.raises(PlanError, match=rf"\[{table}\] is missing"):
        describe_account(read_settings(private))


def test_an_approval_that_is_taken_back_counts_at_the_next_training(private):
    settings = read_settings(private)
    declare_account(settings, create=True)
    with open_site(settings) as site:
        key = load_identity_key(settings.keys.identity)
        Approvals.load(settings.policy.approvals, key.public_key()).revoke(site.plan.hash, key)
        assert site.handle(Envelope(kind="train")).refusal == "refused-policy"
        assert site.budget.ledger.spent()[0].charges == 0
    lines = (settings.site.spool / "audit.jsonl").read_text("utf-8").splitlines()
    assert json.loads(lines[-1])
    assert "refused-policy" in lines[-1]


def test_an_approval_says_what_the_ledger_would_refuse(private, call):
    """A lifetime is counted more strictly than one plan: a limit above the plan's epsilon may end its run early."""
    from client.cli import main

    approve = ("approve", "--site", private, "--yes")
    assert "There is no ledger yet" in call(main, *approve)[1]
    settings = read_settings(private)
    declare_account(settings, create=True)
    out = " ".join(call(main, *approve)[1].split())
    assert "its 2 rounds bring account 'wards' from epsilon 0.00 to" in out
    assert "THE LEDGER WILL REFUSE" not in out
    plan, policy = read_plan(private.parent / "plan.toml"), settings.policy
    with Ledger(
        path=settings.ledger.path,
        witness=settings.ledger.witness,
        key=load_identity_key(settings.keys.identity),
        limit=policy.limit,
    ) as ledger:
        costs = [ledger.forecast("wards", [round_mechanism(plan)] * rounds).epsilon for rounds in (1, 2)]
    assert facts_of(plan, sites=1).epsilon < costs[1]
    change(private, "policy", **(OPEN | {"max_epsilon": sum(costs) / 2, "required_unit": "record"}))
    out = " ".join(call(main, *approve)[1].split())
    assert "THE LEDGER WILL REFUSE after 1 of 2 rounds" in out


@pytest.mark.parametrize("command", ["approve", "budget", "declare"])
def test_commands_take_the_site_file_alone(private, call, command):
    from client.cli import main

    if command == "approve":
        (private.parent / "approvals.json").unlink()
        code, out, _ = call(main, "approve", "--site", private, "--yes")
        assert (code, "Approved plan" in out) == (0, True)
        entries = [
            json.loads(line) for line in (private.parent / "spool" / "audit.jsonl").read_text().splitlines()
        ]
        assert "approval" in json.dumps(entries)
        return
    code, out, _ = call(main, "declare", "--site", private, "--create", "--yes")
    assert (code, "Declared." in out) == (0, True)
    assert "All records of 2026." in out
    if command == "budget":
        code, out, _ = call(main, "budget", "--site", private)
        assert (code, "wards" in out) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["budget"], "--ledger is missing; give it, or --site"),
        (["approve"], "PLAN is missing; give it, or --site"),
        (["run"], "Missing option '--site'"),
        (["run", "--site", "none.toml"], "does not exist"),
    ],
)
def test_a_command_without_its_files_says_what_to_give(call, arguments, said):
    from client.cli import main

    code, _, err = call(main, *arguments)
    assert code == 2
    assert said in " ".join(err.split())
