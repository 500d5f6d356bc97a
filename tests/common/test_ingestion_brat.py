from collections import Counter

import pytest

from common.errors import DataError
from common.ingestion_brat import brat_notes, read_brat
from common.labels import LabelSchema

SCHEMA = LabelSchema(entity_types=("Disease", "Drug"), mapping={"SpecificDisease": "Disease", "Modifier": ""})


def write(folder, text, annotations, name="n1"):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / f"{name}.txt").write_text(text, encoding="utf-8", newline="")
    (folder / f"{name}.ann").write_text(annotations, encoding="utf-8")
    return folder / f"{name}.txt"


def read(folder, text, annotations, counts=None):
    counts = Counter() if counts is None else counts
    return read_brat(write(folder, text, annotations), SCHEMA, counts, document_id="n1")


def mentions(note):
    return [(note.text[span.start : span.end], span.label) for span in note.spans]


def test_offsets_count_characters_of_the_file_as_it_is(tmp_path):
    note = read(tmp_path, "👩🏽 cáncer\r\n患者", "T1\tSpecificDisease 3 9\tcáncer\nT2\tDrug 11 13\t患者\n")
    assert mentions(note) == [("cáncer", "Disease"), ("患者", "Drug")]
    assert (note.note_id, note.document_id, note.patient_id, note.words) == ("n1", "n1", None, None)


def test_only_text_bound_annotations_are_read(tmp_path):
    counts = Counter()
    rest = (
        "R1\tCauses Arg1:T1 Arg2:T1\nA1\tNegated T1\n#1\tAnnotatorNotes T1\tx\n*\tEquiv T1 T1\nN1\tR T1 x:1\n"
    )
    note = read(tmp_path, "flu", f"T1\tDisease 0 3\tflu\n{rest}\n", counts)
    assert mentions(note) == [("flu", "Disease")]
    assert counts["ignored_annotations"] == 5


def test_nested_spans_keep_the_outermost(tmp_path):
    counts = Counter()
    note = read(
        tmp_path, "breast cancer", "T1\tDisease 7 13\tcancer\nT2\tDisease 0 13\tbreast cancer\n", counts
    )
    assert mentions(note) == [("breast cancer", "Disease")]
    assert counts["dropped_nested"] == 1


def test_a_dropped_label_hides_no_span_inside_it(tmp_path):
    counts = Counter()
    note = read(tmp_path, "flu virus", "T1\tModifier 0 9\tflu virus\nT2\tDisease 0 3\tflu\n", counts)
    assert mentions(note) == [("flu", "Disease")]
    assert counts["dropped_by_mapping"] == 1


@pytest.mark.parametrize(
    ("offsets", "mention", "kept", "cut"),
    [
        ("0 6;19 25", "breast cancer", "breast", 1),
        ("0 6;11 25", "breast ovarian cancer", "ovarian\ncancer", 1),
        # A mention over a line end is written as fragments; only white space is between them.
        ("11 18;19 25", "ovarian cancer", "ovarian\ncancer", 0),
        ("11 19;19 25", "ovarian cancer", "ovarian\ncancer", 0),
    ],
)
def test_discontinuous_spans_keep_their_longest_fragment(tmp_path, offsets, mention, kept, cut):
    counts = Counter()
    note = read(tmp_path, "breast and ovarian\ncancer", f"T1\tDisease {offsets}\t{mention}\n", counts)
    assert mentions(note) == [(kept, "Disease")]
    assert counts["discontinuous_cut"] == cut


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        (
            "T1\tDisease 0 9\tx\n",
            r"n1.ann, line 1: span T1 \[0, 9\) goes past the text, which has 5 characters",
        ),
        ("\nT1\tDisease 3 3\t\n", "line 2: span T1 .* is empty, reversed or out of order"),
        ("T1\tDisease 0 2;1 3\tx\n", "out of order"),
        ("T1\tDisease 0 3\tflu\nT2\tDisease 2 5\tu ab\n", "line 2: span T2 covers other characters"),
        ("T1\tDisease 0 3\tflu\nT2\tDisease 2 5\tu a\n", "line 2: span T2 .* crosses T1"),
        ("T1\tGene 0 3\tflu\n", "line 1: label 'Gene' is not in the schema"),
        ("T1 Disease 0 3 flu\n", "line 1: is no text-bound annotation"),
        ("T1\tDisease -1 3\tflu\n", "line 1: is no text-bound annotation"),
        ("flu is a disease\n", "line 1: is no BRAT annotation"),
    ],
)
def test_bad_annotations_name_file_line_and_span(tmp_path, annotations, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, "flu a", annotations)


def test_mentions_stay_out_of_messages(tmp_path):
    with pytest.raises(DataError) as caught:
        read(tmp_path, "Peterson has flu", "T1\tDisease 0 8\tJohnson\n")
    assert "Peterson" not in str(caught.value)
    assert "Johnson" not in str(caught.value)


def test_a_folder_gives_one_note_per_document_in_order(tmp_path):
    write(tmp_path / "b", "flu", "", name="2")
    write(tmp_path, "flu", "T1\tDisease 0 3\tflu\n", name="1")
    write(tmp_path / ".hidden", "flu", "", name="0")
    counts = Counter()
    assert [note.note_id for note in brat_notes(tmp_path, SCHEMA, counts)] == ["1", "b/2"]
    assert counts["notes"] == 2


def test_a_document_table_gives_patients_and_columns(tmp_path):
    write(tmp_path, "flu", "", name="1")
    write(tmp_path, "flu", "", name="2")
    table = tmp_path / "documents.tsv"
    table.write_text("document_id\tpatient_id\tward\n1\tp7\tA\n2\t\tB\n", encoding="utf-8")
    notes = list(brat_notes(tmp_path, SCHEMA, Counter()))
    assert [(n.patient_id, dict(n.columns)) for n in notes] == [("p7", {"ward": "A"}), (None, {"ward": "B"})]
    table.write_text("document_id\tpatient_id\n1\tp7\n", encoding="utf-8")
    with pytest.raises(DataError, match="has no row for document '2'"):
        list(brat_notes(tmp_path, SCHEMA, Counter()))
    table.write_text("document_id\tpatient_id\n1\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2: has 1 fields; the first row names 2"):
        list(brat_notes(tmp_path, SCHEMA, Counter()))


@pytest.mark.parametrize(("missing", "message"), [(".txt", "has no .txt file"), (".ann", "has no .ann file")])
def test_half_a_document_is_named(tmp_path, missing, message):
    write(tmp_path, "flu", "", name="whole")
    write(tmp_path, "flu", "", name="half").with_suffix(missing).unlink()
    with pytest.raises(DataError, match=f"half.* {message}"):
        list(brat_notes(tmp_path, SCHEMA, Counter()))
