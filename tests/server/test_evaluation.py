"""A saved model is scored on gold notes and writes what it finds at exact characters."""

from __future__ import annotations

import json

import pytest

from common.errors import DataError, InputError, ModelError
from common.host import ModelHost
from common.model import save_model
from common.prediction import evaluate
from common.records import EntitySpan, Note
from common.tagger import open_tagger
from server.evaluation import brat_lines, evaluate_folder, predict_folder


@pytest.fixture(scope="module")
def model(make_plan, tmp_path_factory):
    """A saved model; random weights tag at random, which is all that these tests need."""
    host = ModelHost.build(make_plan(seed=3), device="cpu")
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(host.model, host.encoding.tokenizer, folder)
    return folder


def test_the_schema_is_read_from_the_model(model):
    _, encoding = open_tagger(model)
    assert encoding.schema.entity_types == ("Disease", "Drug")
    assert encoding.max_tokens <= 64


def test_the_score_is_that_of_the_evaluation_during_training(model, data_folder, make_data):
    tagger, encoding = open_tagger(model)
    expected = evaluate(tagger, make_data().test, encoding).to_dict()
    assert evaluate_folder(model, data_folder, split="test") == expected


def test_gold_labels_can_be_mapped(model, tmp_path):
    line = {"id": "a", "text": "has gout", "spans": [{"start": 4, "end": 8, "label": "SpecificDisease"}]}
    (tmp_path / "test.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match="SpecificDisease"):
        evaluate_folder(model, tmp_path, split="test")
    table = evaluate_folder(model, tmp_path, split="test", label_map=["SpecificDisease=Disease"])
    assert table["per_entity"]["Disease"]["support"] == 1


@pytest.mark.parametrize("pair", ["Disease", "=Disease"])
def test_a_map_that_is_not_one(model, data_folder, pair):
    with pytest.raises(InputError, match="not of the form SOURCE=TYPE"):
        evaluate_folder(model, data_folder, split="test", label_map=[pair])


def test_a_split_that_is_not_there(model, tmp_path):
    with pytest.raises(InputError, match="has no test split"):
        evaluate_folder(model, tmp_path, split="test")


def test_a_plain_encoder_is_no_tagger(tiny_encoder, data_folder):
    with pytest.raises(ModelError, match=str(tiny_encoder)):
        evaluate_folder(tiny_encoder, data_folder, split="test")


def test_predictions_as_jsonl_and_brat_are_the_same_spans(model, tmp_path, make_notes):
    texts = tmp_path / "texts"
    texts.mkdir()
    for note in make_notes(6):
        (texts / f"{note.note_id}.txt").write_text(f"  {note.text}\n\n{note.text}", encoding="utf-8")
    count = predict_folder(model, texts, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "spans.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 6
    assert sum(len(row["spans"]) for row in rows) == count > 0
    for row in rows:
        text = (texts / f"{row['id']}.txt").read_text("utf-8")
        assert (tmp_path / "out" / f"{row['id']}.txt").read_text("utf-8") == text
        assert all(text[s["start"] : s["end"]] == s["text"] for s in row["spans"])
        brat = (tmp_path / "out" / f"{row['id']}.ann").read_text("utf-8").splitlines()
        assert [line.split("\t")[1].split()[0] for line in brat] == [s["label"] for s in row["spans"]]


def test_line_ends_and_wide_characters_keep_their_offsets(model, tmp_path):
    source = tmp_path / "a.txt"
    source.write_bytes("患者 gout\r\n👩🏽 asthma".encode())
    predict_folder(model, source, tmp_path / "out")
    assert (tmp_path / "out" / "a.txt").read_bytes() == source.read_bytes()


def test_a_span_over_lines_is_written_in_fragments():
    note = Note(note_id="a", text="has lung\n cancer now")
    line = brat_lines(note, [EntitySpan(start=4, end=16, label="Disease")])
    assert line == "T1\tDisease 4 8;9 16\tlung  cancer\n"


@pytest.mark.parametrize("out", [".", "../texts", "sub/.."])
def test_the_texts_are_never_replaced(model, tmp_path, out):
    texts = tmp_path / "texts"
    (texts / "sub").mkdir(parents=True)
    (texts / "a.txt").write_text("has gout")
    for source in (texts, texts / "a.txt"):
        with pytest.raises(InputError, match="holds the texts themselves"):
            predict_folder(model, source, texts / out)
    assert sorted(path.name for path in texts.iterdir()) == ["a.txt", "sub"]


def test_one_bad_text_and_nothing_is_written(model, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("has gout")
    (texts / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"b\.txt.*not UTF-8"):
        predict_folder(model, texts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_texts(model, tmp_path):
    with pytest.raises(InputError, match="neither a text file nor a folder with .txt files"):
        predict_folder(model, tmp_path, tmp_path / "out")


def test_notes_that_nobody_has_annotated_are_no_test_set(model, tmp_path):
    (tmp_path / "test.csv").write_text("id,text\n1,the patient has asthma\n", "utf-8")
    with pytest.raises(DataError, match=r"test\.csv.* 1 notes that nobody has annotated"):
        evaluate_folder(model, tmp_path, split="test")
