import json
import time
from collections import Counter

import pytest

from common.errors import DataError
from common.ingestion import DataFormat, detect_format, find_split, read_dataset, read_split
from common.labels import LabelSchema

SCHEMA = LabelSchema(entity_types=("Disease",))
COLUMNS = "flu\tB-Disease\nis\tO\n"
JSONL = json.dumps({"text": "flu is", "spans": [{"start": 0, "end": 3, "label": "Disease"}]}) + "\n"


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def mentions(notes):
    return [note.text[span.start : span.end] for note in notes for span in note.spans]


def test_each_split_may_have_its_own_format_and_extension(tmp_path):
    write(tmp_path / "train.conll.txt", COLUMNS)
    write(tmp_path / "dev.data", JSONL)
    write(tmp_path / "test" / "n1.txt", "flu is")
    write(tmp_path / "test" / "n1.ann", "T1\tDisease 0 3\tflu\n")
    dataset = read_dataset(tmp_path, SCHEMA)
    for split, found in (
        ("train", DataFormat.COLUMNS),
        ("devel", DataFormat.JSONL),
        ("test", DataFormat.BRAT),
    ):
        assert mentions(getattr(dataset, split)) == ["flu"]
        assert dataset.report[split].detected.format is found
        assert dataset.report[split].counts["spans.Disease"] == 1


def test_a_folder_of_files_is_read_in_order_with_running_numbers(tmp_path):
    for name in ("b.tsv", "a.tsv", ".ignored"):
        write(tmp_path / "train" / name, COLUMNS.replace("\nis", f"\n{name}"))
    notes = list(read_split(tmp_path / "train", SCHEMA, split="train"))
    assert [(note.note_id, note.text) for note in notes] == [
        ("train-0", "flu a.tsv"),
        ("train-1", "flu b.tsv"),
    ]


def test_ids_are_unique_across_the_files_of_a_split(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / "train" / name, JSONL.replace('{"text"', '{"id": "x", "text"'))
    with pytest.raises(DataError, match="b, line 1: field id repeats 'x'"):
        list(read_split(tmp_path / "train", SCHEMA, split="train"))


def test_reading_streams(tmp_path):
    write(tmp_path / "train.jsonl", JSONL + "{broken\n")
    counts = Counter()
    notes = read_split(tmp_path / "train.jsonl", SCHEMA, split="train", counts=counts)
    assert next(notes).text == "flu is"
    assert counts["notes"] == 1
    with pytest.raises(DataError, match="line 2"):
        next(notes)


def test_a_pair_of_files_is_one_brat_document(tmp_path):
    write(tmp_path / "test.txt", "flu is bad and it does not go away")
    write(tmp_path / "test.ann", "T1\tDisease 0 3\tflu\n")
    assert find_split(tmp_path, "test") == tmp_path / "test.txt"
    assert mentions(read_split(tmp_path / "test.txt", SCHEMA, split="test")) == ["flu"]


def test_splits_that_are_not_required_may_be_absent(tmp_path):
    write(tmp_path / "train.tsv", COLUMNS)
    dataset = read_dataset(tmp_path, SCHEMA, required=("train",))
    assert (dataset.devel, dataset.test, list(dataset.report)) == ((), (), ["train"])
    with pytest.raises(DataError, match="has no split devel; add a file or a folder called devel or dev"):
        read_dataset(tmp_path, SCHEMA)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds none of train, devel"),
        (
            {"train.tsv": COLUMNS, "train.jsonl": JSONL},
            r"several candidates for train \(train.jsonl, train.tsv\)",
        ),
        ({"devel.tsv": COLUMNS, "dev.tsv": COLUMNS}, "several candidates for devel"),
        ({"train.tsv": ""}, "train.tsv: is empty"),
        ({"train.json": '[\n  {"text": "flu"}\n]'}, "train.json, line 1: is a JSON array; write JSONL"),
        ({"train/.keep": ""}, "train: is an empty folder"),
        (
            {"train/a.txt": "No fever was seen in this patient."},
            "a.txt: looks like a document, but no .ann file",
        ),
        ({"train/a.ann": "T1\tDisease 0 3\tflu\n"}, "a.ann: has no .txt file beside it"),
    ],
)
def test_unusable_folders_are_named(tmp_path, files, message):
    for name, content in files.items():
        write(tmp_path / name, content)
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path, SCHEMA, required=())


def test_what_does_not_exist_is_named(tmp_path):
    with pytest.raises(DataError, match="gone: is not a folder"):
        read_dataset(tmp_path / "gone", SCHEMA)
    with pytest.raises(DataError, match="gone: does not exist"):
        detect_format(tmp_path / "gone")


def test_every_detection_says_why(tmp_path):
    assert "JSON object" in detect_format(write(tmp_path / "a", "\n" + JSONL)).reason
    assert "no JSON object" in detect_format(write(tmp_path / "b", COLUMNS)).reason
    write(tmp_path / "c" / "x.ann", "")
    assert "no JSON object" in detect_format(write(tmp_path / "d", "[\tO\n{\tO\n")).reason
    assert ".ann" in detect_format(tmp_path / "c").reason


def test_a_note_of_a_hundred_thousand_words_is_read_in_linear_time(tmp_path):
    row = {"text": "flu is " * 50_000, "spans": []}
    row["spans"] = [{"start": i, "end": i + 3, "label": "Disease"} for i in range(0, 350_000, 7)]
    write(tmp_path / "big.jsonl", json.dumps(row) + "\n")
    write(tmp_path / "big.tsv", COLUMNS * 50_000)
    started = time.process_time()
    for name in ("big.jsonl", "big.tsv"):
        (note,) = read_split(tmp_path / name, SCHEMA, split="train")
        assert len(note.spans) == 50_000
    # About 2 s on one slow core; a quadratic step would take minutes.
    assert time.process_time() - started < 20
