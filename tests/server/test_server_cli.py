"""`fedward-server evaluate` and `predict`: tables on the screen, the same in files, one sentence otherwise."""

from __future__ import annotations

import json

import pytest

from common.host import ModelHost
from common.model import save_model
from server.cli import main


@pytest.fixture(scope="module")
def model(make_plan, tmp_path_factory):
    host = ModelHost.build(make_plan(seed=3), device="cpu")
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(host.model, host.encoding.tokenizer, folder)
    return folder


def test_evaluate_prints_what_it_writes(call, model, data_folder, tmp_path):
    file = tmp_path / "scores.json"
    code, out, err = call(main, "evaluate", "--model", model, "--data", data_folder, "--json", file)
    assert (code, err) == (0, "")
    table = json.loads(file.read_text("utf-8"))
    assert set(table) >= {"micro", "macro", "weighted", "per_entity", "token"}
    assert f"{table['micro']['f1']:.4f}" in out
    for name in ("Disease", "Drug", "B-Drug", " O "):
        assert name in out


def test_predict_says_where_the_entities_are(call, model, tmp_path):
    (tmp_path / "note.txt").write_text("the patient has gout .")
    code, out, _ = call(
        main, "predict", "--model", model, "--text", tmp_path / "note.txt", "--out", tmp_path / "o"
    )
    assert code == 0
    assert "spans.jsonl" in out
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"spans.jsonl", "note.txt", "note.ann"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "{tmp}", "--data", "{data}", "--json", "{tmp}/x.json"], "is not a model folder"),
        (["--model", "{model}", "--data", "{tmp}/none", "--json", "{tmp}/x.json"], "is not a folder"),
        (["--model", "{model}", "--data", "{tmp}", "--json", "{tmp}/x.json"], "has no test split"),
        (
            ["--model", "{model}", "--data", "{data}", "--json", "{tmp}/no/x.json"],
            "is not a folder; make it first",
        ),
        (["--model", "{model}", "--data", "{data}"], "Missing option '--json'"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(call, model, data_folder, tmp_path, arguments, message):
    places = {"tmp": tmp_path, "model": model, "data": data_folder}
    code, _, err = call(main, "evaluate", *(argument.format(**places) for argument in arguments))
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_every_command_has_help(call):
    for command in ("evaluate", "predict"):
        code, out, _ = call(main, command, "--help")
        assert code == 0
        assert "--model" in out
