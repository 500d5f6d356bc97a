"""`fedward-sim` from the outside: what it leaves, and one sentence and exit code 2 for every bad input."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from simulation.cli import main

SMALL = ("--set", "rounds=1", "--set", "sites=2")


@pytest.fixture
def data(data_folder, tmp_path):
    """A copy of the data set that a test may damage."""
    return shutil.copytree(data_folder, tmp_path / "data")


@pytest.fixture
def refused(call, plan_file, data, tmp_path):
    """A function that runs, expects bad input, and returns the sentence."""

    def run(*arguments, plan=plan_file):
        before = sorted(tmp_path.rglob("*"))
        code, _, err = call(main, "run", plan, "--data", data, "--out", tmp_path / "out", *arguments)
        assert code == 2, err
        assert "Traceback" not in err
        assert err.strip().count("\n") == 0, err
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return run


def test_run_leaves_a_run_folder_and_says_where(call, plan_file, data, tmp_path):
    out = tmp_path / "out"
    code, screen, err = call(main, "run", plan_file, "--data", data, "--out", out, *SMALL, "--device", "cpu")
    assert (code, err) == (0, "")
    result = json.loads((out / "result.json").read_text("utf-8"))
    assert f"Micro F1 {result['micro_f1']:.4f} after 1 rounds with 2 sites" in screen
    assert "Disease" in screen
    assert "round 1/1" in screen
    # The same again is refused, and with --resume it is finished already.
    code, _, err = call(main, "run", plan_file, "--data", data, "--out", out, *SMALL)
    assert (code, "resume it with --resume" in err) == (2, True)
    code, _, err = call(main, "run", plan_file, "--data", data, "--out", out, "--set", "rounds=2", "--resume")
    assert (code, "resume with the same plan" in err) == (2, True)
    code, screen, _ = call(main, "run", plan_file, "--data", data, "--out", out, *SMALL, "--resume")
    assert code == 0
    assert f"Micro F1 {result['micro_f1']:.4f}" in screen


def test_a_round_that_cannot_be_completed_ends_with_1(call, plan_file, data, tmp_path):
    faults = ("--fault", "drop:site-1@1", "--set", "minimum_cohort=2")
    code, _, err = call(main, "run", plan_file, "--data", data, "--out", tmp_path / "out", *SMALL, *faults)
    assert code == 1
    assert "ended with 1 of at least 2 sites" in err
    assert "Traceback" not in err


def line(**fields):
    return json.dumps({"id": "x", "text": "has gout .", "spans": []} | fields) + "\n"


def span(start, end, label="Disease"):
    return {"start": start, "end": end, "label": label}


BAD_FILES = {
    "an empty file": ("train.jsonl", b"", "is empty"),
    "only blank lines": ("train.jsonl", b"\n\n", "only blank"),
    "an unknown label": ("train.jsonl", line(spans=[span(4, 8, "Diseases")]).encode(), "line 1: .*Diseases"),
    "a span past the text": (
        "devel.jsonl",
        (line(id="a") + line(spans=[span(4, 99)])).encode(),
        "line 2: .*99",
    ),
    "a reversed span": ("test.jsonl", line(spans=[span(8, 4)]).encode(), "line 1: .*reversed"),
    "an offset that is no number": ("train.jsonl", line(spans=[span("4", 8)]).encode(), r"line 1: .*start"),
    "a span without label": ("train.jsonl", line(spans=[{"start": 4, "end": 8}]).encode(), "line 1: .*label"),
    "mixed encodings": (
        "train.jsonl",
        line(text="é").encode() + b'{"id":"b","text":"caf\xe9"}\n',
        "line 2: .*0xE9",
    ),
    "UTF-16": ("train.jsonl", line().encode("utf-16"), "UTF-16"),
    "broken JSON": ("train.jsonl", b'{"id": 1,\n', "line 1: .*not JSON"),
    "a label column that is missing": ("train.tsv", b"has\tO\ngout\n.\tO\n", "line 2"),
    "no label column at all": ("train.tsv", b"has\ngout\n", "line 1"),
    "a tag outside the schema": (
        "train.tsv",
        b"has\tO\ngout\tB-Diseas\n",
        "line 2: label 'Diseas' is not in the schema",
    ),
    "a tag that is none": ("train.tsv", b"has\tO\ngout\tDisease\n", "line 2: .*"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_named_with_their_line(refused, data, name, content, message):
    (data / f"{name.partition('.')[0]}.jsonl").unlink()
    (data / name).write_bytes(content)
    sentence = refused()
    assert str(data / name) in sentence
    assert re.search(message, sentence)


def test_no_note_text_is_in_a_sentence(refused, data):
    (data / "train.jsonl").write_text(line(text="Mrs Example has gout", spans=[span(4, 999)]))
    assert "Example" not in refused()


@pytest.mark.parametrize("missing", ["train", "test"])
def test_a_split_that_is_missing(refused, data, missing):
    (data / f"{missing}.jsonl").unlink()
    assert f"has no split {missing}" in refused()


def test_a_data_folder_that_is_not_one(refused, data):
    shutil.rmtree(data)
    assert "is not a folder" in refused()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sites=40", "cannot give 40 sites at least 1 examples"),
        ("minimum_examples=30", "cannot give 3 sites at least 30 examples"),
        ("minimum_cohort=9", "fewer than federation.minimum_cohort"),
        ("roudns=2", "Did you mean 'rounds'"),
        ("federation.round=2", "Did you mean 'federation.rounds'"),
        ("rounds=0", "federation.rounds is 0; it must be a whole number from 1"),
        ("rounds", "not of the form key=value"),
        ("federation.optimizer=fedadm", "Did you mean 'fedadam'"),
        ("encoder=/no/such/encoder", "/no/such/encoder has no tokenizer that can be opened"),
        ("max_tokens=128", "set model.max_tokens to at most 64"),
        ("trained_layers=7", "has 2 layers"),
        ('entity_types=["Disease"]', "Drug"),
    ],
)
def test_settings_that_cannot_be_met(refused, override, message):
    assert message in refused("--set", override)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--engine", "inproces"), "Did you mean 'inprocess'"),
        (("--device", "gpu0"), "it must be auto, cpu, cuda or cuda:N"),
        (("--fault", "drop:site-9@1"), "Did you mean"),
        (("--fault", "drop:site-1@7"), "the run has rounds 1 to 2"),
        (("--fault", "nonsense"), "nonsense"),
        (("--resume",), "is not a run's folder"),
    ],
)
def test_options_that_cannot_be_met(refused, arguments, message):
    assert message in refused(*arguments)


def test_a_column_with_too_few_values(refused, data):
    notes = [json.loads(text) for text in (data / "train.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(note | {"hospital": "only one"}) + "\n" for note in notes)
    (data / "train.jsonl").write_text(text)
    assert "cannot fill 3 sites" in refused("--set", "partition=column")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[federaton]\nrounds = 1", "did you mean 'federation'"),
        ("[federation]\nrouns = 1", "did you mean 'rounds'"),
        ("rounds", "is not valid TOML"),
        ("federation = 1", "must be a table"),
    ],
)
def test_a_plan_with_a_typo(refused, plan_file, text, message):
    plan_file.write_text(text)
    sentence = refused()
    assert message in sentence
    assert str(plan_file) in sentence


def test_a_plan_that_is_not_there(refused, tmp_path):
    assert "does not exist" in refused(plan=tmp_path / "absent.toml")


@pytest.mark.parametrize("harm", ["config.json", "model.safetensors", "tokenizer.json"])
def test_an_encoder_folder_that_is_damaged(refused, tiny_encoder, tmp_path, harm):
    broken = shutil.copytree(tiny_encoder, tmp_path / "broken")
    path = broken / harm
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert str(broken) in refused("--set", f"encoder={broken}")


def test_an_out_that_is_a_file_or_holds_other_things(call, plan_file, data, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    for out in (file, folder):
        code, _, err = call(main, "run", plan_file, "--data", data, "--out", out, *SMALL)
        assert code == 2
        assert str(out) in err
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    assert file.read_text() == "mine"


@pytest.mark.slow
def test_a_note_of_100000_words_is_trained_on(call, plan_file, data, tmp_path):
    text = "the patient has gout . " * 20_000
    with (data / "train.jsonl").open("a") as file:
        file.write(line(id="long", text=text, spans=[span(16, 20)]))
    options = (*SMALL, "--set", "local_epochs=0", "--set", "local_steps=2")
    code, _, err = call(main, "run", plan_file, "--data", data, "--out", tmp_path / "out", *options)
    assert (code, err) == (0, "")


def test_compare_prints_and_keeps_its_table(call, plan_file, data, tmp_path):
    out = tmp_path / "out"
    arguments = (
        "compare",
        plan_file,
        "--data",
        data,
        "--out",
        out,
        *SMALL,
        "--arms",
        "lexicon,central,federated,alone",
    )
    code, screen, err = call(main, *arguments)
    assert (code, err) == (0, "")
    table = json.loads((out / "compare.json").read_text("utf-8"))
    assert {"lexicon", "central", "federated", "alone"} <= set(table)
    assert [entry["site"] for entry in table["alone"]] == ["site-1", "site-2"]
    for entry in (table["central"], table["federated"], *table["alone"]):
        assert {"micro_f1", "seconds", "epsilon"} <= set(entry)
    assert "alone: site-2" in screen
    # What is finished is read, not run again.
    code, screen, _ = call(main, *arguments)
    assert "epoch 1/1" not in screen
    assert json.loads((out / "compare.json").read_text("utf-8")) == table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--arms", "centrl"), "Did you mean 'central'"),
        (("--set", "sites=40"), "cannot give 40 sites"),
        (("--set", "roudns=1"), "Did you mean 'rounds'"),
    ],
)
def test_compare_refuses_before_it_begins(call, plan_file, data, tmp_path, arguments, message):
    code, _, err = call(main, "compare", plan_file, "--data", data, "--out", tmp_path / "out", *arguments)
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()


def test_bench_names_and_folders_are_checked(call, tmp_path):
    code, _, err = call(main, "bench", "scal", "--json", tmp_path / "x.json")
    assert (code, "Did you mean 'scale'" in err) == (2, True)
    code, _, err = call(main, "bench", "scale", "--json", tmp_path / "none" / "x.json")
    assert (code, "is not a folder" in err) == (2, True)


def test_synthesize_writes_a_data_set_that_run_reads(call, tmp_path):
    code, out, _ = call(main, "synthesize", "--out", tmp_path / "notes", "--hospitals", "2", "--notes", "5")
    assert code == 0
    assert "Wrote 10 training notes of 2 hospitals" in out
    assert {path.name.split(".")[0] for path in (tmp_path / "notes").iterdir()} >= {"train", "devel", "test"}


@pytest.mark.parametrize("command", ["run", "compare", "bench", "synthesize", "demo"])
def test_every_command_has_help(call, command):
    code, out, _ = call(main, command, "--help")
    assert code == 0
    assert "--" in out
