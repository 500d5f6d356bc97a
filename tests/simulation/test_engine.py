"""Whole small federations: what they leave behind, that they repeat, and that faults do not stop them."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from transformers import AutoModelForTokenClassification

from client.trainer import LocalTrainer
from common.errors import InputError, PlanError, RoundError
from common.host import ModelHost
from common.messages import TRAIN
from common.plan import read_plan
from server.checkpoint import CheckpointStore
from simulation import engine
from simulation.engine import federate, open_run, simulate, split_notes


def weights(folder):
    return CheckpointStore(folder / "checkpoints").latest().weights


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def finished(make_plan, make_data, tmp_path_factory):
    """A run of three sites and two rounds, and what it returned."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, simulate(make_plan(), make_data(), folder, device="cpu")


def test_every_file_of_the_run_folder_is_there(finished):
    folder, _ = finished
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names >= {
        "plan.toml",
        "metrics.jsonl",
        "checkpoints",
        "tensorboard",
        "report.html",
        "result.json",
        "model",
    }
    assert "spool" not in names
    assert not list(folder.rglob("*.part"))
    assert list((folder / "tensorboard").iterdir())


def test_transformers_alone_opens_the_model(finished):
    folder, _ = finished
    model = AutoModelForTokenClassification.from_pretrained(folder / "model")
    assert list(model.config.id2label.values()) == ["O", "B-Disease", "I-Disease", "B-Drug", "I-Drug"]


def test_the_result_is_what_the_design_says(finished):
    folder, returned = finished
    result = json.loads((folder / "result.json").read_text("utf-8"))
    for key in ("micro_f1", "per_entity", "rounds", "sites", "secure_aggregation", "epsilon", "seconds"):
        assert key in result
    assert (result["rounds"], result["sites"], result["epsilon"]) == (2, 3, None)
    assert result["secure_aggregation"] is False
    assert set(result["per_entity"]) == {"Disease", "Drug"}
    assert result["micro_f1"] == returned["micro_f1"]


def test_the_metrics_have_one_row_a_round(finished):
    folder, _ = finished
    found = rows(folder)
    assert [row["round"] for row in found] == [1, 2]
    for row in found:
        assert row["sites"] == ["site-1", "site-2", "site-3"]
        assert row["num_examples"] == 36
        assert {"train", "upload", "evaluate"} <= set(row["seconds_by_stage"])


def test_the_plan_in_the_folder_names_the_roster(finished, make_plan, make_data):
    folder, _ = finished
    plan = read_plan(folder / "plan.toml")
    assert plan == federate(make_plan(), make_data().train).plan
    assert len(plan.federation.roster_sha256) == 64


def test_the_same_seed_gives_the_same_bits_and_another_does_not(finished, make_plan, make_data, tmp_path):
    folder, _ = finished
    simulate(make_plan(), make_data(), tmp_path / "again", device="cpu")
    simulate(make_plan(seed=8), make_data(), tmp_path / "other", device="cpu")
    assert weights(tmp_path / "again").tobytes() == weights(folder).tobytes()
    assert weights(tmp_path / "other").tobytes() != weights(folder).tobytes()


def test_fedavg_of_one_site_is_local_training(make_plan, make_data, tmp_path):
    plan, data = make_plan(simulation__sites=1, federation__rounds=1), make_data(12)
    simulate(plan, data, tmp_path / "run", device="cpu")
    host = ModelHost.build(plan, device="cpu")
    before = host.read()
    trainer = LocalTrainer(host.model, plan, pad_id=host.encoding.pad_id)
    trainer.train(host.encoding.examples(data.train), site="site-1", server_round=1)
    # The server adds the change to the model it sent, which rounds once more than training in place does.
    np.testing.assert_allclose(weights(tmp_path / "run"), host.read(), rtol=0, atol=1e-7)
    assert np.abs(host.read() - before).max() > 1e-3


@pytest.mark.parametrize(
    "changes",
    [{"model__lora_rank": 2}, {"model__freeze_embeddings": True}, {"model__trained_layers": 1}],
    ids=str,
)
def test_a_model_trained_in_part_is_saved_plain(make_plan, make_data, tmp_path, changes):
    plan = make_plan(simulation__sites=2, federation__rounds=1, **changes)
    simulate(plan, make_data(12), tmp_path / "run", device="cpu")
    saved = AutoModelForTokenClassification.from_pretrained(tmp_path / "run" / "model").state_dict()
    fresh = ModelHost.build(make_plan(), device="cpu").model.state_dict()
    assert set(saved) == set(fresh)
    changed = {name for name in saved if not saved[name].equal(fresh[name])}
    allowed = {
        "model__lora_rank": ("query.weight", "value.weight", "classifier"),
        "model__freeze_embeddings": (".encoder.", "classifier"),
        "model__trained_layers": (".layer.1.", "classifier"),
    }[next(iter(changes))]
    assert changed
    assert all(any(part in name for part in allowed) for name in changed), changed


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("drop:site-2@1", [["site-1", "site-3"], ["site-1", "site-2", "site-3"]]),
        ("crash:site-2@1/upload", [["site-1", "site-3"], ["site-1", "site-2", "site-3"]]),
        ("fail:site-3@2/upload", [["site-1", "site-2", "site-3"], ["site-1", "site-2"]]),
        ("slow:site-1@1/upload:200ms", [["site-1", "site-2", "site-3"]] * 2),
        ("slow:site-1@2/upload:60s", [["site-1", "site-2", "site-3"], ["site-2", "site-3"]]),
    ],
)
def test_the_round_goes_on_without_a_faulty_site(make_plan, make_data, tmp_path, fault, expected):
    plan = make_plan(federation__minimum_cohort=2, federation__exchange_deadline=1.5)
    simulate(plan, make_data(12), tmp_path / "run", faults=[fault], device="cpu")
    assert [row["sites"] for row in rows(tmp_path / "run")] == expected


def test_a_slow_site_changes_no_bit(finished, make_plan, make_data, tmp_path):
    folder, _ = finished
    simulate(make_plan(), make_data(), tmp_path / "run", faults=["slow:site-1@1:200ms"], device="cpu")
    assert weights(tmp_path / "run").tobytes() == weights(folder).tobytes()


def test_below_the_minimum_cohort_the_run_stops_and_can_be_resumed(make_plan, make_data, tmp_path):
    plan = make_plan(federation__minimum_cohort=3)
    with pytest.raises(RoundError, match="Round 2 ended with 2 of at least 3 sites"):
        simulate(plan, make_data(), tmp_path / "run", faults=["drop:site-1@2"], device="cpu")
    assert not (tmp_path / "run" / "result.json").exists()
    simulate(plan, make_data(), tmp_path / "run", resume=True, device="cpu")
    simulate(plan, make_data(), tmp_path / "whole", device="cpu")
    assert weights(tmp_path / "run").tobytes() == weights(tmp_path / "whole").tobytes()
    assert [row["round"] for row in rows(tmp_path / "run")] == [1, 2]


def test_fewer_sites_than_the_minimum_cohort_is_said_at_once(make_plan, make_data, tmp_path):
    plan = make_plan(federation__minimum_cohort=4)
    with pytest.raises(InputError, match=r"simulation\.sites is 3, fewer than federation\.minimum_cohort"):
        simulate(plan, make_data(), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_site_without_one_entity_type_joins(make_plan, make_notes, make_data, tmp_path, monkeypatch):
    shares = [make_notes(8, name="a"), make_notes(8, name="b", drugs=False)]
    monkeypatch.setattr(engine, "split_notes", lambda plan, train: shares)
    plan = make_plan(simulation__sites=2, federation__rounds=1)
    simulate(plan, make_data(), tmp_path / "run", device="cpu")
    assert rows(tmp_path / "run")[0]["sites"] == ["site-1", "site-2"]


def test_without_a_development_set_the_last_round_is_chosen(make_plan, make_data, tmp_path):
    data = make_data(12)
    bare = type(data)(train=data.train, test=data.test)
    result = simulate(make_plan(simulation__sites=2), bare, tmp_path / "run", device="cpu")
    assert result["chosen_round"] == 2
    assert "devel" not in rows(tmp_path / "run")[0]


def test_a_resume_under_another_plan_is_refused(finished, make_plan, make_data):
    folder, _ = finished
    with pytest.raises(PlanError, match="resume with the same plan"):
        simulate(make_plan(federation__rounds=5), make_data(), folder, resume=True, device="cpu")


def test_a_resume_with_other_notes_is_refused(finished, make_plan, make_data):
    folder, _ = finished
    with pytest.raises(PlanError, match="or the training notes are others"):
        simulate(make_plan(), make_data(30), folder, resume=True, device="cpu")


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(finished, make_plan, make_data):
    folder, first = finished
    again = simulate(make_plan(), make_data(), folder, resume=True, device="cpu")
    assert again["micro_f1"] == first["micro_f1"]
    assert [row["round"] for row in rows(folder)] == [1, 2]


def test_a_run_is_not_overwritten_unless_asked(make_plan, tmp_path):
    plan = make_plan()
    open_run(plan, tmp_path / "run", resume=False).close()
    (tmp_path / "run" / "spool").mkdir()
    with pytest.raises(InputError, match="holds a run already; resume it with --resume"):
        open_run(plan, tmp_path / "run", resume=False)
    open_run(plan, tmp_path / "run", resume=False, replace_run=True).close()
    assert not (tmp_path / "run" / "spool").exists()


def test_other_files_are_never_replaced(make_plan, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for replace_run in (False, True):
        with pytest.raises(InputError, match=r"thesis\.txt"):
            open_run(make_plan(), tmp_path, resume=False, replace_run=replace_run)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_the_roster_is_the_plans_seeds_and_the_weights_are_the_sites_sizes(make_plan, make_data):
    plan = make_plan(simulation__partition="power_law", simulation__exponent=1.0)
    one, two = federate(plan, make_data().train), federate(plan, make_data().train)
    assert one.roster == two.roster
    sizes = {name: len(notes) for name, notes in one.notes.items()}
    assert sum(sizes.values()) == 36
    assert len(set(sizes.values())) > 1
    assert {m.name: m.public_units for m in one.roster} == sizes
    assert federate(make_plan(seed=8), make_data().train).roster != one.roster


@pytest.mark.parametrize("method", ["even", "power_law", "dirichlet"])
def test_every_partition_of_the_plan_gives_each_note_once(make_plan, make_data, method):
    data = make_data()
    shares = split_notes(make_plan(simulation__partition=method), data.train)
    assert sorted(note.note_id for share in shares for note in share) == sorted(n.note_id for n in data.train)


def test_what_a_site_logs_and_the_run_leaves_holds_no_text(finished, make_data):
    folder, _ = finished
    texts = [note.text for note in (*make_data().train, *make_data().test)]
    for path in (
        folder / "metrics.jsonl",
        folder / "result.json",
        folder / "report.html",
        folder / "plan.toml",
    ):
        content = path.read_text("utf-8")
        assert not any(text in content for text in texts)


def test_a_site_that_fails_by_surprise_is_one_site_less(make_plan, make_data, tmp_path, monkeypatch, caplog):
    original = LocalTrainer.train

    def train(self, examples, *, site, **options):
        if site == "site-2":
            raise ZeroDivisionError("inside")
        return original(self, examples, site=site, **options)

    monkeypatch.setattr(LocalTrainer, "train", train)
    with caplog.at_level(logging.ERROR):
        simulate(make_plan(federation__rounds=1), make_data(12), tmp_path / "run", device="cpu")
    assert rows(tmp_path / "run")[0]["sites"] == ["site-1", "site-3"]
    assert "train failed" in caplog.text


def test_the_watch_hears_every_step(make_plan, make_data, tmp_path):
    heard: list[tuple[str, int]] = []

    class Watch:
        def __getattr__(self, name):
            return lambda *arguments: None

        def on_step(self, site, progress):
            heard.append((site, progress.step))

        def on_reply(self, stage, site, refusal):
            if stage == TRAIN:
                heard.append((site, 0))

    simulate(
        make_plan(simulation__sites=2, federation__rounds=1),
        make_data(16),
        tmp_path / "run",
        watch=Watch(),
        device="cpu",
    )
    assert heard == [("site-1", 1), ("site-1", 0), ("site-2", 1), ("site-2", 0)]
