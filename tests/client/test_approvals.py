"""The list of approved plans: signed, private, and able to say what changed since the last one."""

from __future__ import annotations

import dataclasses
import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.approvals import Approvals, RosterMember, describe_roster
from client.policy import PlanFacts
from common.errors import LedgerError, PolicyError

KEY = Ed25519PrivateKey.generate()
FACTS = PlanFacts(
    plan_hash="a" * 64,
    unit="patient",
    q=0.2,
    steps=60,
    reserve_rounds=2,
    noise_multiplier=1.5,
    epsilon=6.4,
    delta=1e-5,
    rounds=6,
    minimum_cohort=3,
    collusion_tolerance=1,
    secure_aggregation=True,
    sites=2,
)
ROSTER = [
    RosterMember(name="north", fingerprint="1111 2222", public_units=300),
    RosterMember(name="east", fingerprint="3333 4444", public_units=500),
]


@pytest.fixture
def approvals(tmp_path: Path) -> Approvals:
    return Approvals.load(tmp_path / "approved.json", KEY.public_key()).approve(FACTS, ROSTER, KEY)


def test_nothing_is_approved_by_default(tmp_path: Path) -> None:
    assert FACTS.plan_hash not in Approvals.load(tmp_path / "approved.json", KEY.public_key())


def test_what_was_approved_is_read_again(approvals: Approvals) -> None:
    again = Approvals.load(approvals.path, KEY.public_key())
    assert again == approvals
    assert FACTS.plan_hash in again
    assert "b" * 64 not in again
    assert stat.S_IMODE(approvals.path.stat().st_mode) == 0o600


def test_revoking_takes_a_plan_out(approvals: Approvals) -> None:
    approvals.revoke(FACTS.plan_hash, KEY)
    assert FACTS.plan_hash not in Approvals.load(approvals.path, KEY.public_key())
    with pytest.raises(PolicyError, match="nothing to revoke"):
        approvals.revoke("b" * 64, KEY)


def test_a_server_that_can_write_the_file_still_approves_nothing(approvals: Approvals) -> None:
    outer = json.loads(approvals.path.read_text())
    outer["approvals"]["entries"][0]["facts"]["plan_hash"] = "b" * 64
    approvals.path.write_text(json.dumps(outer))
    with pytest.raises(PolicyError, match="was changed, or is not signed"):
        Approvals.load(approvals.path, KEY.public_key())
    approvals.approve(FACTS, ROSTER, Ed25519PrivateKey.generate())
    with pytest.raises(PolicyError, match="was changed, or is not signed"):
        Approvals.load(approvals.path, KEY.public_key())


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"approvals": 3, "signature": "zz"}'])
def test_junk_is_refused(approvals: Approvals, content: str) -> None:
    approvals.path.write_text(content)
    with pytest.raises(PolicyError, match="approve again the plans that you know"):
        Approvals.load(approvals.path, KEY.public_key())


def test_a_file_that_others_can_write_is_refused(approvals: Approvals) -> None:
    approvals.path.chmod(0o664)
    with pytest.raises(LedgerError, match="mode is 0664"):
        Approvals.load(approvals.path, KEY.public_key())


def test_changes_of_the_roster_and_of_the_numbers_are_said(approvals: Approvals) -> None:
    roster = [
        RosterMember(name="north", fingerprint="9999 0000", public_units=301),
        RosterMember(name="west", fingerprint="5555 6666", public_units=10),
    ]
    facts = dataclasses.replace(FACTS, plan_hash="b" * 64, epsilon=7.5, secure_aggregation=False)
    assert approvals.changes(facts, roster) == (
        "east left the roster.",
        "west is new, with the key 5555 6666.",
        "north has another key: 9999 0000, before 1111 2222.",
        "north counts 301 public units, before 300.",
        "epsilon is 7.5, before 6.4.",
        "secure_aggregation is off, before on.",
    )


def test_no_change_is_no_sentence_and_a_hidden_one_is_said(approvals: Approvals) -> None:
    assert approvals.changes(FACTS, ROSTER) == ()
    (hidden,) = approvals.changes(dataclasses.replace(FACTS, plan_hash="b" * 64), ROSTER)
    assert "something that this page does not show" in hidden


def test_the_first_plan_says_that_everybody_is_new(tmp_path: Path) -> None:
    (sentence,) = Approvals(path=tmp_path / "none").changes(FACTS, ROSTER)
    assert "every member below is new" in sentence


def test_the_roster_shows_every_fingerprint() -> None:
    text = describe_roster(ROSTER)
    assert [line.split() for line in text.splitlines()[1:]] == [
        ["east", "3333", "4444", "(500", "public", "units)"],
        ["north", "1111", "2222", "(300", "public", "units)"],
    ]
