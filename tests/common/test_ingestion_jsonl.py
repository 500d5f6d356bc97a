import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError
from common.ingestion_jsonl import read_jsonl
from common.labels import LabelSchema, tags_to_spans
from common.tokenization import gold_tags, words_of

SCHEMA = LabelSchema(entity_types=("Disease", "Drug"), mapping={"Noise": ""})


def read(folder, *records, counts=None):
    path = folder / "train.jsonl"
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return list(read_jsonl(path, SCHEMA, "train", Counter() if counts is None else counts))


def record(text="flu a", spans=((0, 3, "Disease"),), **fields):
    keys = ("start", "end", "label")
    return {"text": text, "spans": [dict(zip(keys, span, strict=False)) for span in spans], **fields}


def test_a_note_keeps_its_ids_and_scalar_fields(tmp_path):
    counts = Counter()
    (note,) = read(
        tmp_path,
        record(
            id=7, document_id="d", patient_id="p", ward="A", year=2020, urgent=True, empty=None, tags=["x"]
        ),
        counts=counts,
    )
    assert (note.note_id, note.document_id, note.patient_id) == ("7", "d", "p")
    assert dict(note.columns) == {"ward": "A", "year": "2020", "urgent": "true"}
    assert counts["ignored_fields"] == 1


def test_spans_are_sorted_mapped_and_counted(tmp_path):
    counts = Counter()
    (note,) = read(
        tmp_path, record("flu and ache", [(8, 12, "Drug"), (0, 3, "Disease"), (0, 7, "Noise")]), counts=counts
    )
    assert [(s.start, s.end, s.label) for s in note.spans] == [(0, 3, "Disease"), (8, 12, "Drug")]
    assert counts["dropped_by_mapping"] == 1


def test_notes_without_id_are_numbered_and_blank_lines_are_skipped(tmp_path):
    assert [n.note_id for n in read(tmp_path, record(), "", record(id="x"), record())] == [
        "train-0",
        "x",
        "train-2",
    ]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "line 2: is not JSON"),
        ('{"text": ' + "9" * 5000 + "}", "line 2: holds a number with too many digits"),
        ("[1]", "line 2: must be a JSON object"),
        ("[" * 100_000, "line 2: (is nested too deeply|is not JSON)"),
        ({"spans": []}, "line 2: field text must be a non-empty text"),
        ({"text": ""}, "field text"),
        ({"text": "a"}, "field spans must be a list; write \\[\\]"),
        ({"text": "a\ud800", "spans": []}, "half of a surrogate pair at character 1"),
        (record(id=""), "field id must be"),
        (record(id=True), "field id must be"),
        (record(id="first"), "field id repeats 'first'"),
        (record(patient_id=["p"]), "field patient_id must be"),
        ({"text": "a", "spans": [3]}, r"field spans\[0\] must be an object"),
        (record(spans=[("0", 3, "Disease")]), r"field spans\[0\].start must be a whole number"),
        (record(spans=[(-1, 3, "Disease")]), r"field spans\[0\].start must be a whole number"),
        (record(spans=[(0, 2.5, "Disease")]), r"field spans\[0\].end must be a whole number"),
        (record(spans=[(0, 3)]), r"field spans\[0\].label must be a text"),
        (record(spans=[(0, 6, "Disease")]), r"field spans\[0\] \[0, 6\) goes past the text, which has 5"),
        (record(spans=[(3, 3, "Disease")]), "empty or reversed"),
        (record(spans=[(0, 3, "Gene")]), "line 2: label 'Gene' is not in the schema"),
        (
            record(spans=[(0, 3, "Drug"), (2, 5, "Drug")]),
            r"span spans\[1\] \[2, 5\) crosses spans\[0\] \[0, 3\)",
        ),
        (record(spans=[(0, 5, "Drug"), (4, 5, "Drug")]), r"span spans\[1\] \[4, 5\) lies inside spans\[0\]"),
        (
            {"text": "ab", "spans": [{"start": 0, "end": 1, "label": "Drug", "text": "b"}]},
            r"spans\[0\].text is not",
        ),
    ],
)
def test_bad_records_name_file_line_and_field(tmp_path, bad, message):
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, record(id="first"), bad)
    assert caught.value.line == 2


def test_a_file_of_blank_lines_is_named(tmp_path):
    with pytest.raises(DataError, match="has no records"):
        read(tmp_path, "", "")


@given(st.text(alphabet="aé 患e\u0301👩🏽\u200d⚕️-9\n", min_size=1, max_size=40), st.data())
def test_spans_on_word_borders_of_any_text_survive_the_round_trip(tmp_path_factory, text, data):
    (plain,) = read(tmp_path_factory.getbasetemp(), record(text, ()))
    words = words_of(plain)
    if not words:
        return
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, len(words) - 1))
    (note,) = read(tmp_path_factory.getbasetemp(), record(text, [(words[first][0], words[last][1], "Drug")]))
    tags = gold_tags(note, SCHEMA)
    assert tags_to_spans(tags.tag_ids, words, SCHEMA) == note.spans
    assert tags.num_widened == 0
