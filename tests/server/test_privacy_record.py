"""The server's count of what sites were asked: conservative, and kept across a resume."""

import pytest

from common.errors import InputError
from common.plan import Federation, Plan, Privacy
from common.private_plan import trainings_epsilon
from common.roster import Member, Roster
from server.privacy_record import PrivacyRecord

PLAN = Plan(
    federation=Federation(rounds=3),
    privacy=Privacy(q=1.0, steps=6, noise_multiplier=2.0, reserve_rounds=1),
)
ROSTER = Roster(tuple(Member(name=name, identity_key=name.encode() * 32) for name in "ab"))


def record(path, plan=PLAN):
    return PrivacyRecord(path / "privacy.json", plan, ROSTER)


def test_every_asking_counts_also_after_a_resume(tmp_path):
    record(tmp_path).ask(["a", "b"])
    record(tmp_path).ask(["a"])
    claims = record(tmp_path).claims()
    assert {site: claim.trainings for site, claim in claims.items()} == {"a": 2, "b": 1}
    assert claims["a"].epsilon == trainings_epsilon(PLAN, 2)
    assert claims["a"].composition == {
        "mechanism": "poisson-subsampled-gaussian",
        "trainings": 2,
        "steps": 4,
        "q": 1.0,
        "noise_multiplier": 2.0,
    }


def test_more_askings_than_the_ledgers_admit_cost_no_more(tmp_path):
    opened = record(tmp_path)
    for _ in range(9):
        opened.ask(["a"])
    assert opened.claims()["a"].trainings == 4


def test_a_site_that_was_never_asked_spent_nothing(tmp_path):
    assert record(tmp_path).claims()["b"].epsilon.epsilon == 0.0


def test_a_plan_without_privacy_claims_nothing(tmp_path):
    assert record(tmp_path, Plan()).claims() == {}


def test_heads_are_kept_and_what_is_no_head_is_not(tmp_path):
    opened = record(tmp_path)
    opened.keep_head("a", '{"v": 1}')
    opened.keep_head("b", "x" * 2000)
    opened.keep_head("b", None)
    again = record(tmp_path)
    assert (again.head("a"), again.head("b")) == ('{"v": 1}', "")


@pytest.mark.parametrize("text", ["", "[]", '{"asked": {"a": "x"}, "heads": {}}'])
def test_a_damaged_record_is_never_taken_for_an_empty_one(tmp_path, text):
    (tmp_path / "privacy.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="no epsilon can be stated"):
        record(tmp_path)
