"""A site's own file: what it must say, what it may not, and the site that it opens."""

import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w

from client import settings
from client.approvals import Approvals
from client.keys import load_identity_key, make_identity_key
from client.plan_facts import facts_of
from client.settings import open_site, read_settings
from common.errors import DataError, InputError, PlanError, PolicyError
from common.messages import HELLO, Envelope
from common.roster import Member, Roster, write_roster

ROOT = Path(settings.__file__).resolve().parents[1]
POLICY = {"max_epsilon": 1.0, "max_delta": 1e-5, "approvals": "approvals.json", "required_unit": "none"}
OPEN = POLICY | {"secure_aggregation_mandatory": False, "min_cohort": 1}


@pytest.fixture
def site(tmp_path, make_plan, data_folder):
    """A site's folder with everything in it; returns its site.toml."""
    public = make_identity_key(tmp_path / "identity.pem")
    roster = Roster((Member(name="st-mary", identity_key=public),))
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


def change(path: Path, section: str, **values: object) -> None:
    """Set keys of a table of the file; None removes one."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    changed = table.get(section, {}) | values
    table[section] = {key: value for key, value in changed.items() if value is not None}
    path.write_text(tomli_w.dumps(table), encoding="utf-8")


def test_paths_are_taken_from_the_files_folder(site):
    found = read_settings(site)
    assert found.site.data == site.parent / "records"
    assert found.keys.identity == site.parent / "identity.pem"
    assert found.policy is None


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("site", {"rooster": "r.toml"}, "'rooster'; did you mean 'roster'"),
        ("site", {"spool": None}, "site.spool is missing"),
        ("site", {"name": 7}, "site.name is 7"),
        ("site", {"data": ""}, "site.data is ''"),
        ("keys", {"identity": None}, "keys.identity is missing"),
        ("keys", {"identiti": "x"}, "did you mean 'identity'"),
        ("key", {}, "unknown key 'key'; did you mean 'keys'"),
        ("policy", {"max_epsilon": 1.0}, "max_delta is missing"),
    ],
)
def test_errors_name_file_and_field(site, section, values, said):
    change(site, section, **values)
    with pytest.raises(PlanError) as caught:
        read_settings(site)
    assert str(site) in str(caught.value)
    assert said in str(caught.value)


def test_missing_file_and_bad_toml(tmp_path):
    with pytest.raises(PlanError, match="does not exist"):
        read_settings(tmp_path / "none.toml")
    (tmp_path / "site.toml").write_text("[site", encoding="utf-8")
    with pytest.raises(PlanError, match="not valid TOML"):
        read_settings(tmp_path / "site.toml")


def test_a_site_is_opened_once(site):
    first = open_site(site)
    reply = first.handle(Envelope(kind=HELLO))
    assert reply.header["site"] == "st-mary"
    assert first.examples()
    assert open_site(os.path.relpath(site)) is first


def test_the_servers_plan_counts_only_where_the_site_names_none(site, tmp_path):
    assert open_site(site, tmp_path / "elsewhere.toml").plan.hash
    other = tmp_path / "b.toml"
    other.write_bytes(site.read_bytes())
    change(other, "site", plan=None)
    assert open_site(other, tmp_path / "plan.toml").name == "st-mary"
    with pytest.raises(PlanError, match=r"site\.plan is missing"):
        open_site(other)


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
        open_site(site)
    assert not (site.parent / "spool").exists()


def test_a_key_that_the_roster_does_not_list_is_refused(site):
    make_identity_key(site.parent / "other.pem")
    change(site, "keys", identity="other.pem")
    with pytest.raises(PlanError, match=r"keys\.identity is not the key that .* lists for st-mary"):
        open_site(site)


def test_an_exchanged_roster_is_refused(site):
    """A server that adds a member of its own makes another roster than the plan's."""
    key = load_identity_key(site.parent / "identity.pem").public_key().public_bytes_raw()
    ours = Member(name="st-mary", identity_key=key)
    write_roster(Roster((ours, Member(name="x", identity_key=bytes(32)))), site.parent / "roster.toml")
    with pytest.raises(PlanError, match="is for the roster with"):
        open_site(site)


def test_a_plan_without_a_roster_is_refused(site, make_plan):
    (site.parent / "plan.toml").write_text(make_plan().to_toml(), encoding="utf-8")
    with pytest.raises(PlanError, match="names no roster"):
        open_site(site)


def test_the_policy_wins(site):
    change(site, "policy", **POLICY)
    with pytest.raises(PolicyError, match="secure_aggregation_mandatory"):
        open_site(site)


def test_a_plan_is_opened_once_it_is_approved(site):
    change(site, "policy", **OPEN)
    with pytest.raises(PolicyError, match="has not approved this plan"):
        open_site(site)
    key = load_identity_key(site.parent / "identity.pem")
    plan = settings.read_plan(site.parent / "plan.toml")
    approvals = Approvals.load(site.parent / "approvals.json", key.public_key())
    approvals.approve(facts_of(plan, sites=1), (), key)
    assert open_site(site).plan.hash == plan.hash


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


def test_hello_needs_neither_torch_nor_records(site):
    """Flower starts a process for each message, and a node must say who it is within seconds."""
    (site.parent / "records" / "train.jsonl").unlink()
    script = (
        "import sys, client.app\n"
        "from client.settings import introduce\n"
        f"assert introduce({str(site)!r}).header['site'] == 'st-mary'\n"
        "heavy = {'torch', 'transformers', 'opacus', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300, cwd=ROOT)
