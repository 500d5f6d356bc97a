"""The data holder's commands: keys, audit log, privacy budget, approval."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from client.cli import main
from client.keys import load_identity_key
from client.ledger import Account, Ledger
from client.policy import read_policy
from common.audit_log import AuditLog
from common.roster import Member, Roster, write_roster

POLICY = """
max_epsilon = 8.0
max_delta = 1e-5
approvals = "approvals.json"
required_unit = "none"
min_cohort = 3
"""


@pytest.fixture
def site(call, tmp_path):
    """A folder with an identity key and a policy, and the options that name its ledger."""
    code, out, _ = call(main, "keys", "new", tmp_path / "id.pem")
    assert code == 0
    assert "fingerprint" in out
    (tmp_path / "policy.toml").write_text(POLICY)
    (tmp_path / "elsewhere").mkdir()
    return tmp_path


def ledger_options(site: Path) -> list[object]:
    return [
        "--ledger", site / "ledger.db", "--witness", site / "elsewhere" / "witness.json",
        "--key", site / "id.pem", "--policy", site / "policy.toml",
    ]  # fmt: skip


def declare(site: Path) -> None:
    """Declare an account, as a site's set-up does."""
    key, limit = load_identity_key(site / "id.pem"), read_policy(site / "policy.toml").limit
    with Ledger(
        path=site / "ledger.db", witness=site / "elsewhere" / "witness.json", key=key, limit=limit
    ) as ledger:
        ledger.declare(Account(name="wards", unit="patient", delta=1e-5, declaration="All patients of 2026."))


def test_a_key_is_private_and_never_overwritten(site, call):
    assert stat.S_IMODE((site / "id.pem").stat().st_mode) == 0o600
    code, _, err = call(main, "keys", "new", site / "id.pem")
    assert code == 2
    assert "id.pem" in err


def test_the_budget_of_a_new_ledger(site, call):
    assert call(main, "budget", *ledger_options(site), "--create")[0] == 0
    declare(site)
    code, out, _ = call(main, "budget", *ledger_options(site))
    assert code == 0
    assert "wards" in out
    assert "8.000" in out


def test_a_lost_witness_is_refused_until_the_operator_adopts_it(site, call):
    call(main, "budget", *ledger_options(site), "--create")
    declare(site)
    (site / "elsewhere" / "witness.json").unlink()
    code, _, err = call(main, "budget", *ledger_options(site))
    assert code == 1
    assert "--adopt-witness" in err
    assert call(main, "budget", *ledger_options(site), "--adopt-witness")[0] == 0
    assert call(main, "budget", *ledger_options(site))[0] == 0


def test_a_rotated_key_opens_the_ledger(site, call):
    call(main, "budget", *ledger_options(site), "--create")
    call(main, "keys", "new", site / "new.pem")
    rest = [
        "--ledger",
        site / "ledger.db",
        "--witness",
        site / "elsewhere" / "witness.json",
        "--policy",
        site / "policy.toml",
    ]
    assert call(main, "keys", "rotate", "--old", site / "id.pem", "--new", site / "new.pem", *rest)[0] == 0
    assert call(main, "budget", *rest, "--key", site / "new.pem")[0] == 0
    assert call(main, "budget", *rest, "--key", site / "id.pem")[0] == 1


def test_an_audit_log_is_verified_and_a_changed_one_is_not(site, call):
    log = AuditLog(site / "audit.jsonl", key=load_identity_key(site / "id.pem"))
    log.append("round", server_round=1, stage="upload", attempt=1)
    log.append("round", server_round=2, stage="upload", attempt=1)
    code, out, _ = call(main, "audit", "verify", site / "audit.jsonl", "--key", site / "id.pem")
    assert code == 0
    assert "2 lines" in out
    path = site / "audit.jsonl"
    path.write_text(path.read_text().replace('"server_round":1', '"server_round":7'))
    code, _, err = call(main, "audit", "verify", path)
    assert code != 0
    assert "line 1" in err


def test_a_plan_is_approved_with_its_roster_and_not_with_another(site, call, make_plan, tmp_path):
    keys = [
        load_identity_key(site / "id.pem").public_key().public_bytes_raw(),
        b"2" * 32,
        b"3" * 32,
        b"4" * 32,
    ]
    roster = Roster(tuple(Member(name=f"site-{i}", identity_key=key) for i, key in enumerate(keys)))
    write_roster(roster, tmp_path / "roster.toml")
    plan = make_plan(
        secure_aggregation__enabled=True,
        federation__minimum_cohort=3,
        federation__roster_sha256=roster.digest().hex(),
    )
    (tmp_path / "plan.toml").write_text(plan.to_toml())
    options = ["--key", site / "id.pem", "--policy", site / "policy.toml", "--yes"]
    code, out, err = call(
        main, "approve", tmp_path / "plan.toml", "--roster", tmp_path / "roster.toml", *options
    )
    assert code == 0, err
    assert roster.member("site-0").fingerprint.split()[0] in out
    assert plan.hash[:12] in out
    write_roster(Roster(roster.members[:3]), tmp_path / "other.toml")
    code, _, err = call(
        main, "approve", tmp_path / "plan.toml", "--roster", tmp_path / "other.toml", *options
    )
    assert code == 2
    assert "another roster" in err


def test_a_plan_that_breaks_the_policy_lists_every_clause(site, call, make_plan, tmp_path):
    roster = Roster((Member(name="site-0", identity_key=b"1" * 32),))
    write_roster(roster, tmp_path / "roster.toml")
    plan = make_plan(federation__minimum_cohort=1, federation__roster_sha256=roster.digest().hex())
    (tmp_path / "plan.toml").write_text(plan.to_toml())
    code, _, err = call(
        main, "approve", tmp_path / "plan.toml", "--roster", tmp_path / "roster.toml",
        "--key", site / "id.pem", "--policy", site / "policy.toml", "--yes",
    )  # fmt: skip
    assert code == 1
    assert "min_cohort" in err
    assert "secure_aggregation" in err
    assert not (tmp_path / "approvals.json").exists()


@pytest.mark.parametrize(
    ("command", "table"),
    [
        ("approve", "policy"),
        ("declare", "ledger"),
        ("deidentify-check", "deidentification"),
        ("prepare", "preparation"),
    ],
)
def test_a_table_in_a_help_text_is_no_markup(call, command, table):
    assert f"[{table}]" in call(main, command, "--help")[1]
