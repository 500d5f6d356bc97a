"""The public warm-up trains what the plan says on notes that are nobody's test set."""

import numpy as np
import pytest

from common.errors import DataError, PlanError
from common.host import ModelHost
from common.records import Note
from server.warmup import warm_up


@pytest.fixture(scope="module")
def plan(make_plan):
    return make_plan(warmup__notes=8, warmup__epochs=2, warmup__learning_rate=1e-2)


@pytest.fixture
def host(plan):
    return ModelHost.build(plan, device="cpu")


def test_it_trains_and_says_what_that_gave(plan, host, make_notes):
    before = host.read()
    devel, test = make_notes(4, name="devel"), make_notes(4, name="test")
    warmed = warm_up(plan, host, make_notes(8, name="public"), devel=devel, test=test)
    assert not np.array_equal(warmed.vector, before)
    assert warmed.facts["notes"] == 8
    assert warmed.facts["epochs"] == 2
    assert set(warmed.facts) == {
        "source", "notes", "epochs", "head_only", "devel_micro_f1", "test_micro_f1",
    }  # fmt: skip


def test_it_repeats_to_the_bit(plan, make_notes):
    vectors = [
        warm_up(plan, ModelHost.build(plan, device="cpu"), make_notes(8), devel=(), test=()).vector
        for _ in range(2)
    ]
    assert np.array_equal(*vectors)


def test_the_head_alone_leaves_the_encoder_as_it_was(make_plan, make_notes):
    plan = make_plan(warmup__notes=8, warmup__head_only=True)
    host = ModelHost.build(plan, device="cpu")
    before = {name: p.detach().clone() for name, p in host.model.named_parameters()}
    trained = [name for name, p in host.model.named_parameters() if p.requires_grad]
    warm_up(plan, host, make_notes(8), devel=(), test=())
    changed = {name for name, p in host.model.named_parameters() if not p.equal(before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    assert [name for name, p in host.model.named_parameters() if p.requires_grad] == trained


@pytest.mark.parametrize("held", ["devel", "test"])
def test_a_note_of_the_servers_own_sets_is_refused(plan, host, make_notes, held):
    taken = Note(
        note_id="taken", text="the patient takes aspirin for gout and was given insulin with no history ."
    )
    notes = [*make_notes(7, name="public"), taken]
    sets = {"devel": (), "test": (), held: [Note(note_id="own", text=taken.text.upper())]}
    before = host.read()
    with pytest.raises(DataError, match=rf"1 of 8 public notes .* share text with the {held}"):
        warm_up(plan, host, notes, **sets)
    assert np.array_equal(host.read(), before)


def test_no_notes_and_no_section_are_errors(plan, make_plan, host, make_notes):
    with pytest.raises(DataError, match="needs public notes"):
        warm_up(plan, host, (), devel=(), test=())
    with pytest.raises(PlanError, match=r"no \[warmup\] section"):
        warm_up(make_plan(), host, make_notes(2), devel=(), test=())
