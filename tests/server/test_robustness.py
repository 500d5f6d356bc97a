"""Robustness: a model of whole words suffers from typos and unseen mentions, and not from case."""

from __future__ import annotations

import json
import random

import pytest

from client.trainer import LocalTrainer
from common.errors import InputError
from common.host import ModelHost
from common.model import save_model
from common.unseen_mentions import unseen_lexicon, unseen_mention
from server.cli import main
from server.robustness import RobustnessJob, measure_robustness


@pytest.fixture(scope="module")
def model(make_plan, make_notes, tmp_path_factory):
    """A model that has learnt the made-up words: its tokenizer knows whole words and ignores case."""
    plan = make_plan(federation__local_epochs=8, federation__rounds=1, training__learning_rate=1e-2)
    host = ModelHost.build(plan, device="cpu")
    trainer = LocalTrainer(host.model, plan, pad_id=0)
    trainer.train(host.encoding.examples(make_notes(80)), site="s", server_round=1)
    folder = tmp_path_factory.mktemp("robust") / "model"
    save_model(host.model, host.encoding.tokenizer, folder)
    return folder


def test_each_perturbation_stands_beside_the_clean_score(model, data_folder, tmp_path):
    synonyms = tmp_path / "synonyms.tsv"
    synonyms.write_text("the\tone\npatient\tperson\nwith\thaving\n")
    job = RobustnessJob(model=model, data=data_folder, rate=1.0, seeds=2, synonyms=synonyms)
    result = measure_robustness(job)
    clean, perturbed = result["clean"]["micro_f1"], result["perturbed"]
    assert clean > 0.8
    assert set(perturbed) == {"typo", "case", "synonym", "mention"}
    assert perturbed["case"]["micro_f1"] == clean
    assert perturbed["typo"]["drop"] > 0.1
    for row in perturbed.values():
        assert [run["seed"] for run in row["runs"]] == [13, 14]
        assert row["drop"] == pytest.approx(clean - row["micro_f1"])
        assert row["changed_notes"] > 0.5
    again = measure_robustness(job)
    assert again == result


def test_a_rate_of_nothing_costs_nothing_but_unseen_mentions(model, data_folder):
    result = measure_robustness(RobustnessJob(model=model, data=data_folder, rate=0.0, seeds=1))
    assert result["perturbed"]["typo"]["drop"] == 0.0
    assert result["perturbed"]["mention"]["changed_notes"] == 1.0


def test_public_mentions_must_be_unseen(model, data_folder, tmp_path):
    listed = tmp_path / "mentions.tsv"
    listed.write_text("Disease\tgout\nDrug\taspirin\n")
    with pytest.raises(InputError, match="holds no mention that the data does not hold"):
        measure_robustness(RobustnessJob(model=model, data=data_folder, mentions=listed))
    listed.write_text("Disease\tplague\nDrug\tquinine\n")
    result = measure_robustness(RobustnessJob(model=model, data=data_folder, mentions=listed, seeds=1))
    assert result["settings"]["unseen_mentions"] == "lexicon"


@pytest.mark.parametrize("seed", range(5))
def test_made_up_mentions_are_unseen(seed):
    real = {"Disease": ("colon carcinoma", "fibrosis", "gout", "肺癌"), "Drug": ("aspirin",)}
    known = {m.lower() for group in real.values() for m in group} | {"gorosis"}
    made = unseen_lexicon(real, known, random.Random(seed), size=50)
    assert set(made) == {"Disease"}
    assert len(made["Disease"]) > 3
    assert not {m.lower() for m in made["Disease"]} & known
    assert unseen_mention(("gout", "gout"), known, random.Random(seed)) is None


def test_the_command_prints_what_it_writes(call, model, data_folder, tmp_path):
    file = tmp_path / "robust.json"
    code, out, err = call(
        main, "robustness", "--model", model, "--data", data_folder, "--json", file, "--seeds", "1"
    )
    assert (code, err) == (0, "")
    result = json.loads(file.read_text())
    assert f"{result['perturbed']['typo']['micro_f1']:.4f}" in out
    assert "No synonyms were given" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "{tmp}"], "has no test split"),
        (["--data", "{data}", "--json", "{tmp}/no/x.json"], "make it first"),
        (["--data", "{data}", "--synonyms", "{tmp}/none.tsv"], "cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(call, model, data_folder, tmp_path, arguments, message):
    given = [a.format(tmp=tmp_path, data=data_folder) for a in arguments]
    json_option = [] if "--json" in given else ["--json", tmp_path / "x.json"]
    code, _, err = call(main, "robustness", "--model", model, *given, *json_option)
    assert code == 2
    assert message in err
    assert not (tmp_path / "x.json").exists()
