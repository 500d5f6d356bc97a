"""Every format gives the same notes, says why it was taken for itself, and goes on after a bad record."""

import base64
import csv
import json
import re
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from common.errors import DataError, ValidationError
from common.ingestion import detect_format, read_dataset, read_split
from common.ingestion_detection import DataFormat, named_format
from common.ingestion_tables import TableLayout
from common.labels import LabelSchema
from common.records import Note

SCHEMA = LabelSchema(entity_types=("Disease", "Drug"), mapping={"Chemical": "Drug", "Noise": ""})
TEXT = "Fièvre 👩🏽‍⚕️ after\naspirin. 心肌梗死 noted."
DISEASE = (TEXT.index("心"), TEXT.index("心") + 4)
DRUG = (TEXT.index("aspirin"), TEXT.index("aspirin") + 7)
SECRET = "SECRETNAME"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path, **options):
    counts = Counter()
    notes = list(read_split(path, SCHEMA, split="train", counts=counts, **options))
    return notes, counts


def tolerant(path: Path, **options):
    rejects = []
    notes = list(read_split(path, SCHEMA, split="train", on_reject=rejects.append, **options))
    return notes, rejects


def mentions(note: Note) -> list[tuple[str, str]]:
    return [(note.text[s.start : s.end], s.label) for s in note.spans]


EXPECTED = [("aspirin", "Drug"), ("心肌梗死", "Disease")]


def bioc(path: Path) -> Path:
    title, rest = TEXT.split("\n")
    base = len(title) + 1
    annotations = [
        {"infons": {"type": "Chemical"}, "text": "aspirin", "locations": [{"offset": DRUG[0], "length": 7}]},
        {
            "infons": {"type": "Disease"},
            "text": "心肌梗死",
            "locations": [{"offset": DISEASE[0], "length": 4}],
        },
    ]
    document = {
        "id": "n1",
        "infons": {"patient_id": "p1"},
        "passages": [
            {"offset": 0, "text": title},
            {"offset": base, "text": rest, "annotations": annotations},
        ],
        "relations": [{"id": "R1"}],
    }
    return write(path, json.dumps({"source": "x", "documents": [document]}, indent=1))


def bioc_lines(path: Path) -> Path:
    document = json.loads(bioc(path).read_text("utf-8"))["documents"][0]
    return write(path, json.dumps(document) + "\n" + json.dumps(document | {"id": "n2"}) + "\n")


def pubtator(path: Path) -> Path:
    title, rest = TEXT.split("\n")
    rows = [f"n1|t|{title}", f"n1|a|{rest}", f"n1\t{DRUG[0]}\t{DRUG[1]}\taspirin\tChemical\tD1"]
    rows += [f"n1\t{DISEASE[0]}\t{DISEASE[1]}\t心肌梗死\tDisease", "n1\tCID\tD1\tD2"]
    return write(path, "\n".join(rows) + "\n\n")


def prodigy(path: Path) -> Path:
    spans = [
        {"start": DISEASE[0], "end": DISEASE[1], "label": "Disease", "token_start": 4},
        {"start": DRUG[0], "end": DRUG[1], "label": "Chemical"},
    ]
    record = {"text": TEXT, "spans": spans, "_task_hash": 1, "answer": "accept"}
    record["meta"] = {"id": "n1", "patient_id": "p1"}
    return write(path, json.dumps(record) + "\n" + json.dumps(record | {"answer": "reject"}) + "\n")


def label_studio(path: Path) -> Path:
    values = [
        {"start": DISEASE[0], "end": DISEASE[1], "text": "心肌梗死", "labels": ["Disease"]},
        {"start": DRUG[0], "end": DRUG[1], "text": "aspirin", "labels": ["Chemical"]},
    ]
    result = [{"value": value, "type": "labels"} for value in values]
    tasks = [
        {
            "id": "n1",
            "annotations": [{"was_cancelled": True}, {"result": result}],
            "data": {"text": TEXT, "patient_id": "p1"},
        },
        {"id": "n2", "annotations": [], "data": {"text": "nobody has looked"}},
    ]
    return write(path, json.dumps(tasks))


def cluener(path: Path) -> Path:
    label = {
        "Chemical": {"aspirin": [[DRUG[0], DRUG[1] - 1]]},
        "Disease": {"心肌梗死": [[DISEASE[0], DISEASE[1] - 1]]},
    }
    return write(
        path, json.dumps({"id": "n1", "text": TEXT, "label": label, "patient_id": "p1"}, ensure_ascii=False)
    )


def spans_cell() -> str:
    return json.dumps(
        [
            {"start": DISEASE[0], "end": DISEASE[1], "label": "Disease"},
            {"start": DRUG[0], "end": DRUG[1], "label": "Chemical"},
        ]
    )


def csv_file(path: Path) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["id", "text", "patient_id", "spans", "ward"])
        writer.writerow(["n1", TEXT, "p1", spans_cell(), "B2"])
    return path


def parquet(path: Path) -> Path:
    table = pyarrow.table(
        {"id": ["n1"], "text": [TEXT], "patient_id": ["p1"], "spans": [spans_cell()], "ward": ["B2"]}
    )
    pyarrow.parquet.write_table(table, path)
    return path


def document_reference(**changes):
    data = base64.b64encode(TEXT.encode()).decode()
    return {
        "resourceType": "DocumentReference",
        "id": "n1",
        "status": "current",
        "subject": {"reference": "Patient/p1"},
        "type": {"coding": [{"display": "Discharge"}]},
        "content": [{"attachment": {"contentType": "text/plain; charset=utf-8", "data": data}}],
    } | changes


def fhir(path: Path) -> Path:
    report = {
        "resourceType": "DiagnosticReport",
        "id": "n2",
        "status": "final",
        "code": {"text": "CT"},
        "subject": {"reference": "https://example.org/fhir/Patient/p2/_history/1"},
        "conclusion": "No embolism.",
    }
    entries = [
        {"resource": r} for r in ({"resourceType": "Patient", "id": "p1"}, document_reference(), report)
    ]
    write(path, json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries}, indent=2))
    gold = {"id": "n1", "spans": json.loads(spans_cell())}
    write(path.with_name(path.name.split(".")[0] + ".spans.jsonl"), json.dumps(gold) + "\n")
    return path


def fhir_lines(path: Path) -> Path:
    write(path, json.dumps(document_reference()) + "\n" + json.dumps(document_reference(id="n2")) + "\n")
    gold = {"id": "n1", "spans": json.loads(spans_cell())}
    write(path.with_name(path.name.split(".")[0] + ".spans.jsonl"), json.dumps(gold) + "\n")
    return path


FORMATS = [
    (bioc, DataFormat.BIOC, "BioC"),
    (bioc_lines, DataFormat.BIOC, "BioC"),
    (pubtator, DataFormat.PUBTATOR, "ID|t|title"),
    (prodigy, DataFormat.PRODIGY, "Prodigy"),
    (label_studio, DataFormat.LABEL_STUDIO, "Label Studio"),
    (cluener, DataFormat.CLUENER, "CLUENER"),
    (csv_file, DataFormat.CSV, "names columns"),
    (parquet, DataFormat.PARQUET, "PAR1"),
    (fhir, DataFormat.FHIR, "resourceType"),
    (fhir_lines, DataFormat.FHIR, "resourceType"),
]


@pytest.mark.parametrize(("make", "expected", "reason"), FORMATS)
def test_every_format_is_found_and_read(tmp_path, make, expected, reason):
    path = make(tmp_path / "train.data")
    found = detect_format(path)
    assert (found.format, reason in found.reason) == (expected, True), found
    notes, counts = read(path)
    assert notes[0].text == TEXT
    assert mentions(notes[0]) == EXPECTED
    assert notes[0].note_id == "n1"
    assert notes[0].patient_id == (None if make is pubtator else "p1")
    assert counts["notes"] == len(notes)


@pytest.mark.parametrize(("make", "expected", "reason"), FORMATS)
def test_a_data_set_may_be_in_any_format(tmp_path, make, expected, reason):
    make(tmp_path / "train.data")
    data = read_dataset(tmp_path, SCHEMA, required=("train",))
    assert mentions(data.train[0]) == EXPECTED
    assert data.report["train"].detected.format == expected


def test_what_formats_leave_out_is_counted(tmp_path):
    assert read(prodigy(tmp_path / "a"))[1]["skipped_answers"] == 1
    assert read(label_studio(tmp_path / "b"))[1]["skipped_unannotated"] == 1
    assert read(pubtator(tmp_path / "c"))[1]["ignored_annotations"] == 1
    assert read(fhir(tmp_path / "d"))[1]["ignored_resources"] == 1
    notes, counts = read(fhir_lines(tmp_path / "e"))
    assert (counts["unannotated"], notes[1].spans) == (1, ())


def test_fhir_names_patients_kinds_and_conclusions(tmp_path):
    notes, _ = read(fhir(tmp_path / "train.json"))
    assert [note.patient_id for note in notes] == ["p1", "p2"]
    assert [note.columns["note_type"] for note in notes] == ["Discharge", "CT"]
    assert notes[1].text == "No embolism."


def test_columns_of_a_table_can_be_named(tmp_path):
    path = write(tmp_path / "x.csv", "NOTE,MRN\nfever,7\n")
    with pytest.raises(DataError, match="no column 'text'"):
        read(path)
    notes, counts = read(path, table=TableLayout(text="NOTE", patient="MRN"))
    assert (notes[0].text, notes[0].patient_id, counts["unannotated"]) == ("fever", "7", 1)


def test_label_studio_offsets_in_utf16_units_are_converted(tmp_path):
    shift = sum(ord(c) > 0xFFFF for c in TEXT[: DRUG[0]])
    value = {"start": DRUG[0] + shift, "end": DRUG[1] + shift, "text": "aspirin", "labels": ["Chemical"]}
    task = {"id": 1, "data": {"text": TEXT}, "annotations": [{"result": [{"value": value}]}]}
    notes, counts = read(write(tmp_path / "a", json.dumps([task])))
    assert mentions(notes[0]) == [("aspirin", "Drug")]
    assert counts["utf16_offsets"] == 1


def bad_base64(path):
    good, bad = document_reference(), document_reference(id="n9")
    bad["content"] = [{"attachment": {"contentType": "text/plain", "data": "%%%" + SECRET}}]
    return write(path, json.dumps(bad) + "\n" + json.dumps(good) + "\n")


def bad_date(path):
    bad = document_reference(id="n9", date="2020-13-77" + SECRET)
    return write(path, json.dumps(bad) + "\n" + json.dumps(document_reference()) + "\n")


def only_a_url(path):
    bad = document_reference(id="n9", content=[{"attachment": {"url": "https://example.org/" + SECRET}}])
    return write(path, json.dumps(bad) + "\n" + json.dumps(document_reference()) + "\n")


def a_pdf_attachment(path):
    bad = document_reference(
        id="n9", content=[{"attachment": {"contentType": "application/pdf", "data": "AAAA"}}]
    )
    return write(path, json.dumps(bad) + "\n" + json.dumps(document_reference()) + "\n")


def line(**changes) -> str:
    return json.dumps({"id": "n1", "text": TEXT, "spans": []} | changes) + "\n"


def cut_json_line(path):
    return write(path, line() + f'{{"id": "n2", "text": "{SECRET}\n' + line(id="n3"))


def not_utf8(path):
    return write(
        path, line().encode() + b'{"text": "' + SECRET.encode() + b'\xff"}\n' + line(id="n3").encode()
    )


def cut_collection(path):
    whole = bioc(path).read_text("utf-8")
    return write(path, whole[: whole.rindex("]")] + f', {{"id": "{SECRET}')


def bad_offsets(path):
    span = {"start": 0, "end": 9999, "label": "Disease", "text": SECRET}
    return write(path, line() + line(id="n2", spans=[span]))


def unknown_label(path):
    return write(path, line() + line(id="n2", spans=[{"start": 0, "end": 2, "label": "Unheard"}]))


def repeated_id(path):
    return write(path, line() + line(text=SECRET))


def bad_csv_row(path):
    return write(path, f"id,text\nn1,fever\nn2,{SECRET},too,many\n")


def bad_spans_cell(path):
    return write(path, f"id,text,spans\nn1,fever,[]\nn2,{SECRET},not json\n")


def bad_pubtator_block(path):
    return write(path, f"n1|t|Fever\nn1|a|Bad\n\nn2|t|{SECRET}\nn2|a|x\nn2\t0\t99\tmention\tDisease\n")


def wrong_mention(path):
    return write(path, f"n1|t|Fever\nn1|a|Bad\n\nn2|t|{SECRET}\nn2|a|x\nn2\t0\t4\tother\tDisease\n")


def cluener_wrong_mention(path):
    good, bad = cluener(path).read_text("utf-8"), {"text": SECRET, "label": {"Disease": {"fever": [[0, 4]]}}}
    return write(path, good + "\n" + json.dumps(bad) + "\n")


BAD = [
    (bad_base64, "bad-base64"),
    (bad_date, "bad-date"),
    (only_a_url, "no-attachment-data"),
    (a_pdf_attachment, "not-plain-text"),
    (cut_json_line, "not-json"),
    (not_utf8, "not-utf8"),
    (cut_collection, "not-json"),
    (bad_offsets, "bad-span"),
    (unknown_label, "unknown-label"),
    (repeated_id, "repeated-id"),
    (bad_csv_row, "bad-row"),
    (bad_spans_cell, "bad-span"),
    (bad_pubtator_block, "bad-span"),
    (wrong_mention, "bad-span"),
    (cluener_wrong_mention, "bad-span"),
]


@pytest.mark.parametrize(("make", "reason"), BAD)
def test_a_bad_record_is_listed_without_text_and_the_rest_is_read(tmp_path, make, reason):
    path = make(tmp_path / "train.data")
    notes, rejects = tolerant(path)
    assert notes
    assert [reject.reason for reject in rejects] == [reason]
    assert rejects[0].line
    assert SECRET not in repr(rejects)


@pytest.mark.parametrize(("make", "reason"), BAD)
def test_without_a_listener_the_first_bad_record_stops(tmp_path, make, reason):
    with pytest.raises(DataError) as caught:
        read(make(tmp_path / "train.data"))
    assert caught.value.reason == reason
    assert SECRET not in str(caught.value)


def test_a_pdf_called_txt_and_lonely_annotations_are_listed(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    write(folder / "a.txt", "Fever.")
    write(folder / "a.ann", "T1\tDisease 0 5\tFever\n")
    write(folder / "b.txt", b"%PDF-1.7 " + SECRET.encode())
    write(folder / "b.ann", "")
    write(folder / "c.ann", "T1\tDisease 0 5\tFever\n")
    write(folder / "d.txt", SECRET)
    notes, rejects = tolerant(folder)
    assert [note.note_id for note in notes] == ["a"]
    assert sorted(reject.reason for reject in rejects) == ["no-annotation-file", "no-text-file", "pdf"]


def test_a_file_that_is_no_text_is_listed_and_the_other_files_are_read(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    write(folder / "a.jsonl", line())
    write(folder / "b.jsonl", b"%PDF-1.4")
    write(folder / "c.jsonl", "")
    write(folder / "d.jsonl", line(id="n4"))
    notes, rejects = tolerant(folder)
    assert [note.note_id for note in notes] == ["n1", "n4"]
    assert [reject.reason for reject in rejects] == ["pdf", "empty-file"]


def test_a_bad_row_of_columns_rejects_its_note_alone(tmp_path):
    path = write(tmp_path / "train.tsv", f"Fever\tB-Disease\n\n{SECRET}\tO\textra\n\ncough\tO\n")
    notes, rejects = tolerant(path)
    assert [(note.note_id, note.text) for note in notes] == [("train-0", "Fever"), ("train-2", "cough")]
    assert [(r.note_id, r.reason, r.line) for r in rejects] == [("train-1", "bad-row", 3)]


def test_bytes_that_are_not_utf8_reject_their_block_of_columns(tmp_path):
    path = write(tmp_path / "train.tsv", b"Fever\tB-Disease\nx\xff\tO\n\ncough\tO\n")
    notes, rejects = tolerant(path)
    assert [note.text for note in notes] == ["cough"]
    assert [r.reason for r in rejects] == ["not-utf8"]


def test_a_long_array_is_read_an_element_at_a_time(tmp_path):
    tasks = [
        {"id": i, "data": {"text": f"note {i} " + "x" * 500}, "annotations": [{"result": []}]}
        for i in range(600)
    ]
    path = write(tmp_path / "a.json", json.dumps(tasks))
    notes = read_split(path, SCHEMA, split="train")
    assert next(notes).note_id == "0"
    assert sum(1 for _ in notes) == 599


def test_a_format_can_be_named_and_a_wrong_name_is_refused(tmp_path):
    assert named_format("auto") is None
    path = write(tmp_path / "a", line())
    assert read(path, detected=named_format("jsonl"))[0]
    with pytest.raises(ValidationError, match="bioc"):
        named_format("bio")


def test_an_array_of_something_else_is_refused(tmp_path):
    with pytest.raises(DataError, match=re.escape("JSON array")):
        detect_format(write(tmp_path / "a", '[{"text": "x"}]'))


@pytest.mark.parametrize("make", [prodigy, bioc_lines, fhir_lines, cluener])
def test_a_broken_first_line_does_not_hide_the_format(tmp_path, make):
    path = make(tmp_path / "train.data")
    whole = path.read_text("utf-8").rstrip("\n")
    expected = detect_format(path).format
    write(path, whole.partition("\n")[0][:60] + "\n" + whole + "\n")
    assert detect_format(path).format is expected
    notes, rejects = tolerant(path)
    assert mentions(notes[0]) == EXPECTED
    assert [(reject.reason, reject.line) for reject in rejects] == [("not-json", 1)]
