"""Faults: the text form, the look-up, and clear refusals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ValidationError
from simulation.faults import KINDS, STAGES, Fault, FaultSchedule

SITES = [f"site-{i}" for i in range(4)]


def schedule(*texts: str) -> FaultSchedule:
    return FaultSchedule.parse(texts, sites=SITES, rounds=5)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("drop:site-2@3", Fault(kind="drop", site="site-2", round=3)),
        ("slow:site-1@2:5s", Fault(kind="slow", site="site-1", round=2, seconds=5.0)),
        (
            "slow:site-1@2/confirm:250ms",
            Fault(kind="slow", site="site-1", round=2, stage="confirm", seconds=0.25),
        ),
        ("fail:site-0@1/upload", Fault(kind="fail", site="site-0", round=1, stage="upload")),
        (" crash:site-3@5/unmask ", Fault(kind="crash", site="site-3", round=5, stage="unmask")),
    ],
)
def test_parse(text, fault):
    assert Fault.parse(text) == fault


@st.composite
def faults(draw):
    kind = draw(st.sampled_from(KINDS))
    return Fault(
        kind=kind,
        site=draw(st.from_regex(r"[A-Za-z0-9_.-]+", fullmatch=True)),
        round=draw(st.integers(1, 10**6)),
        stage=draw(st.sampled_from(STAGES)),
        seconds=draw(st.floats(0.001, 86_400)) if kind == "slow" else 0.0,
    )


@given(faults())
def test_text_and_back(fault):
    assert Fault.parse(str(fault)) == fault


@pytest.mark.parametrize("kind", ["drop", "crash"])
def test_a_lasting_fault_stays_to_the_end_of_the_round_only(kind):
    faulty = schedule(f"{kind}:site-1@2/upload")
    struck = [stage for stage in STAGES if faulty.lookup("site-1", 2, stage)]
    assert struck == ["upload", "confirm", "unmask"]
    assert not any(faulty.lookup("site-1", 3, stage) for stage in STAGES)


@pytest.mark.parametrize("text", ["fail:site-1@2/upload", "slow:site-1@2/upload:1s"])
def test_a_passing_fault_strikes_once(text):
    faulty = schedule(text)
    assert [stage for stage in STAGES if faulty.lookup("site-1", 2, stage)] == ["upload"]


def test_other_sites_and_rounds_are_untouched():
    faulty = schedule("drop:site-2@3")
    assert faulty.lookup("site-2", 3, "train") == Fault(kind="drop", site="site-2", round=3)
    assert faulty.lookup("site-2", 2, "train") is None
    assert faulty.lookup("site-1", 3, "train") is None


def test_two_faults_of_one_round_each_have_their_stage():
    faulty = schedule("drop:site-0@1/confirm", "slow:site-0@1/train:2s")
    kinds = [found.kind if (found := faulty.lookup("site-0", 1, stage)) else None for stage in STAGES]
    assert kinds == ["slow", None, None, "drop", "drop"]
    assert len(faulty) == 2


def test_an_empty_schedule_has_no_faults():
    assert len(schedule()) == 0
    assert schedule().lookup("site-0", 1, "train") is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("drop site-2", "must be KIND:SITE@ROUND"),
        ("", "must be KIND:SITE@ROUND"),
        ("drop:site-2@3@4", "must be KIND:SITE@ROUND"),
        ("dropp:site-2@3", "fault kind is 'dropp'.*Did you mean 'drop'"),
        ("drop:site-2@zero", "round 'zero'; it must be a whole number"),
        ("drop:site-2@\u0663", "it must be a whole number"),
        ("drop:site-2@0", "fault round is 0"),
        ("fail:site-0@1/uplod", "fault stage is 'uplod'.*Did you mean 'upload'"),
        ("slow:site-1@2", "has no duration"),
        ("slow:site-1@2:5min", "duration '5min'; write it like 5s"),
        ("slow:site-1@2:0s", "fault seconds is 0.0"),
        ("slow:site-1@2:90000s", "fault seconds is 90000.0"),
        ("drop:site-1@2:5s", "only a slow fault has a duration"),
        ("drop:site-9@2", "unknown site 'site-9'; the run has site-0, site-1, site-2, site-3. Did you mean"),
        ("drop:site-1@6", "names round 6; the run has rounds 1 to 5"),
    ],
)
def test_bad_faults_are_refused_in_one_sentence(text, sentence):
    with pytest.raises(ValidationError, match=sentence):
        schedule(text)


def test_many_sites_are_not_all_listed():
    sites = [f"site-{i}" for i in range(100)]
    with pytest.raises(ValidationError, match="100 sites from site-0 to site-99"):
        FaultSchedule.parse(["drop:nowhere@1"], sites=sites, rounds=1)


def test_faults_that_meet_are_refused():
    with pytest.raises(ValidationError, match="meets another of site-1 at round 2, stage train"):
        schedule("drop:site-1@2", "slow:site-1@2:1s")


@pytest.mark.parametrize(("site", "stage"), [("site-7", "train"), ("site-1", "evaluate")])
def test_looking_up_the_unknown_is_refused(site, stage):
    with pytest.raises(ValidationError, match="it must be one of"):
        schedule("drop:site-1@2").lookup(site, 2, stage)
