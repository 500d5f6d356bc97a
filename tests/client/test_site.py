"""A site answers what the plan allows, and of a failure says a fixed code and nothing else."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.site import Site
from client.trainer import LocalTrainer
from common.audit_log import verify
from common.host import ModelHost
from common.messages import CONFIRM, HELLO, SHARE_KEYS, TRAIN, UPLOAD, Envelope
from common.parameters import vector_hash
from common.records import Note
from common.roster import Member, Roster
from common.stages import MEAN_STATISTICS, SUM_STATISTICS

KEY = Ed25519PrivateKey.from_private_bytes(b"1" * 32)
ROSTER = Roster(
    (
        Member(name="site-1", identity_key=KEY.public_key().public_bytes_raw(), public_units=10),
        Member(name="site-2", identity_key=b"2" * 32, public_units=40),
    )
)


class Bench:
    """One site with its host and the requests that a server would send."""

    def __init__(self, plan, notes, spool):
        self.plan, self.notes, self.spool = plan, notes, spool
        self.host = ModelHost.build(plan, device="cpu")
        self.start = self.host.read()
        self.fits: list[int] = []
        self.site = self.make()

    def make(self, name="site-1"):
        return Site(
            name=name,
            plan=self.plan,
            roster=ROSTER,
            notes=self.notes,
            host=self.host,
            spool=self.spool,
            identity_key=KEY,
            on_step=lambda site, progress: self.fits.append(progress.step),
        )

    def ask(self, kind, *, vector=None, site=None, drop=(), **header):
        vector = self.start if vector is None else vector
        full = {
            "plan_hash": self.plan.hash,
            "run_id": "run1",
            "round": 1,
            "model_hash": vector_hash(vector),
            **header,
        }
        for name in drop:
            del full[name]
        arrays = {"model": vector} if kind == TRAIN else {}
        return (site or self.site).handle(Envelope(kind=kind, header=full, arrays=arrays))


@pytest.fixture
def bench(make_plan, make_notes, tmp_path):
    return Bench(make_plan(), make_notes(16), tmp_path / "spool")


def test_hello_names_site_and_plan(bench):
    reply = bench.ask(HELLO)
    assert dict(reply.header) == {"site": "site-1", "plan_hash": bench.plan.hash}


def test_the_upload_is_the_weighted_change_of_local_training(bench):
    assert bench.ask(TRAIN).refusal is None
    reply = bench.ask(UPLOAD)
    bench.host.write(bench.start)
    trainer = LocalTrainer(bench.host.model, bench.plan, pad_id=bench.host.encoding.pad_id)
    result = trainer.train(bench.host.encoding.examples(bench.notes), site="site-1", server_round=1)
    expected = (bench.host.read() - bench.start) * np.float32(0.25)
    assert reply.arrays["delta"].tobytes() == expected.tobytes()
    statistics = (*SUM_STATISTICS, *MEAN_STATISTICS)
    assert {name: float(reply.arrays[name][0]) for name in statistics} == {
        "num_examples": result.num_examples,
        "num_tokens": result.num_tokens,
        "num_clipped": 0,
        "train_loss": pytest.approx(result.loss_sum / result.num_tokens * 0.25),
    }
    assert set(reply.arrays) == {"delta", *statistics}


def test_the_reply_to_train_says_nothing_about_the_records(bench):
    reply = bench.ask(TRAIN)
    assert set(reply.header) == {"round", "model_hash"}
    assert not reply.arrays


def test_a_retry_of_a_round_trains_once(bench):
    bench.ask(TRAIN)
    steps = len(bench.fits)
    bench.ask(TRAIN)
    assert len(bench.fits) == steps > 0


def test_a_site_that_was_restarted_still_has_its_update(bench):
    bench.ask(TRAIN)
    one = bench.ask(UPLOAD)
    steps = len(bench.fits)
    again = bench.make()
    bench.ask(TRAIN, site=again)
    assert len(bench.fits) == steps
    assert bench.ask(UPLOAD, site=again).arrays["delta"].tobytes() == one.arrays["delta"].tobytes()


def test_another_model_of_the_same_round_is_trained_anew(bench):
    bench.ask(TRAIN)
    steps = len(bench.fits)
    bench.ask(TRAIN, vector=bench.start + np.float32(0.01))
    assert len(bench.fits) == 2 * steps


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({"plan_hash": "00" * 32}, "refused"),
        ({"round": 2**60}, "refused"),
        ({"round": 0}, "refused"),
        ({"round": -1}, "refused"),
        ({"round": 3}, "refused"),
        ({"round": True}, "bad-message"),
        ({"round": "1"}, "bad-message"),
        ({"run_id": "../../etc"}, "refused"),
        ({"run_id": ""}, "refused"),
        ({"run_id": "a" * 65}, "refused"),
        ({"run_id": 7}, "bad-message"),
        ({"drop": ("plan_hash",)}, "bad-message"),
        ({"drop": ("round",)}, "bad-message"),
        ({"drop": ("run_id",)}, "bad-message"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [TRAIN, UPLOAD])
def test_requests_that_are_not_of_the_plan_are_refused(bench, kind, header, code):
    reply = bench.ask(kind, **header)
    assert dict(reply.header) == {"code": code}
    assert not reply.arrays
    assert not bench.fits
    # The refusal is all that was written.
    assert [path.name for path in bench.spool.iterdir()] == ["audit.jsonl"]
    assert [entry.kind for entry in verify(bench.spool / "audit.jsonl")] == ["refusal"]


def test_an_earlier_round_is_refused(bench):
    assert bench.ask(TRAIN, round=2).refusal is None
    assert bench.ask(TRAIN, round=1).refusal == "refused"
    assert bench.ask(UPLOAD, round=1).refusal == "refused"
    assert bench.ask(UPLOAD, round=2).refusal is None


@pytest.mark.parametrize("change", [lambda v: v[:-1], lambda v: np.append(v, v[:1]), lambda v: v[:0]])
def test_a_model_of_another_length_is_refused_and_leaves_nothing(bench, change):
    vector = change(bench.start)
    reply = bench.ask(TRAIN, vector=vector, model_hash=vector_hash(vector))
    assert dict(reply.header) == {"code": "refused-protocol"}
    assert bench.ask(UPLOAD).refusal == "refused"


@pytest.mark.parametrize("change", [lambda v: v.astype(np.float64), lambda v: v.reshape(1, -1)])
def test_a_model_of_another_type_is_refused(bench, change):
    assert bench.ask(TRAIN, vector=change(bench.start)).refusal == "bad-message"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_that_is_not_finite_is_refused(bench, value):
    vector = bench.start.copy()
    vector[3] = value
    assert bench.ask(TRAIN, vector=vector).refusal == "bad-message"
    assert not bench.fits


def test_upload_before_train_is_refused(bench):
    assert bench.ask(UPLOAD).refusal == "refused"


@pytest.mark.parametrize("kind", [SHARE_KEYS, CONFIRM])
def test_stages_that_the_plan_does_not_have_are_refused(bench, kind):
    assert dict(bench.ask(kind).header) == {"code": "refused"}


def test_a_site_without_examples_says_so_to_its_own_log_alone(make_plan, tmp_path, caplog):
    bench = Bench(make_plan(), [Note(note_id="secret-id", text=" \n ")], tmp_path / "spool")
    with caplog.at_level(logging.WARNING):
        reply = bench.ask(TRAIN)
    assert dict(reply.header) == {"code": "bad-data"}
    assert "Site site-1 has no training examples" in caplog.text


def test_a_site_without_one_entity_type_trains(make_plan, make_notes, tmp_path):
    bench = Bench(make_plan(), make_notes(8, drugs=False), tmp_path / "spool")
    assert bench.ask(TRAIN).refusal is None


def test_a_site_that_is_not_in_the_roster_is_not_made(bench):
    with pytest.raises(Exception, match="no member 'site-9'"):
        bench.make("site-9")
