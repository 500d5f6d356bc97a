from collections import Counter

import pytest

from common.errors import DataError
from common.ingestion_columns import ColumnLayout, read_columns
from common.labels import LabelSchema
from common.tag_schemes import TagScheme

SCHEMA = LabelSchema(entity_types=("Disease", "Drug"), mapping={"Noise": "", "Illness": "Disease"})


def read(folder, content, *, layout=None, name="train.tsv", counts=None):
    path = folder / name
    path.write_text(content, encoding="utf-8", newline="")
    counts = Counter() if counts is None else counts
    return list(read_columns(path, SCHEMA, "train", counts, layout=layout))


def mentions(note):
    return [(note.text[span.start : span.end], span.label) for span in note.spans]


def test_words_are_joined_by_spaces_and_ids_are_numbered(tmp_path):
    counts = Counter()
    first, second = read(
        tmp_path, "No\tO\nbreast\tB-Disease\ncáncer\tI-Disease\n\n\n患\tB-Drug\r\n", counts=counts
    )
    assert (first.note_id, second.note_id) == ("train-0", "train-1")
    assert (first.text, first.words) == ("No breast cáncer", ((0, 2), (3, 9), (10, 16)))
    assert mentions(first) == [("breast cáncer", "Disease")]
    assert mentions(second) == [("患", "Drug")]
    assert (first.document_id, first.patient_id) == (None, None)
    assert counts == {
        "notes": 2, "words": 4, "spans": 2, "spans.Disease": 1, "spans.Drug": 1, "repaired_tags": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "tags",
    [
        "B-Disease I-Disease B-Disease O B-Drug",
        "I-Disease I-Disease B-Disease O I-Drug",
        "B-Disease E-Disease S-Disease O S-Drug",
        "B-Disease L-Disease U-Disease O U-Drug",
    ],
    ids=["IOB2", "IOB1", "IOBES", "BILOU"],
)
def test_every_scheme_gives_the_same_entities(tmp_path, tags):
    (note,) = read(tmp_path, "".join(f"w{i} {tag}\n" for i, tag in enumerate(tags.split())))
    assert mentions(note) == [("w0 w1", "Disease"), ("w2", "Disease"), ("w4", "Drug")]


def test_conll_2003_documents_start_at_docstart(tmp_path):
    notes = read(
        tmp_path,
        "-DOCSTART- -X- -X- O\n\nfever NN I-NP I-Disease\n\nno DT O O\n\n"
        "-DOCSTART- -X- -X- O\n\nrest NN O O\n",
    )
    assert [note.document_id for note in notes] == ["train-doc-0", "train-doc-0", "train-doc-1"]
    assert mentions(notes[0]) == [("fever", "Disease")]


def test_comments_name_document_patient_and_columns(tmp_path):
    counts = Counter()
    notes = read(
        tmp_path,
        "# doc_id = d1\n# patient_id = p1\n# ward = 3 B\nfever\tO\n\ncough\tO\n\n"
        "# doc_id = d2\n# text = rest\n# just a remark\nrest\tO\n",
        counts=counts,
    )
    assert [(n.document_id, n.patient_id, dict(n.columns)) for n in notes] == [
        ("d1", "p1", {"ward": "3 B"}),
        ("d1", "p1", {"ward": "3 B"}),
        ("d2", None, {}),
    ]
    assert counts["ignored_comments"] == 1


def test_a_hash_can_be_a_word(tmp_path):
    (tabs,) = read(tmp_path, "#\tO\n3\tO\n")
    (spaces,) = read(tmp_path, "# O\n3 O\n")
    assert tabs.text == spaces.text == "# 3"


def test_labels_are_mapped_and_dropped_per_entity(tmp_path):
    counts = Counter()
    (note,) = read(tmp_path, "a\tB-Noise\nb\tI-Noise\nc\tB-Illness\n", counts=counts)
    assert mentions(note) == [("c", "Disease")]
    assert counts["dropped_by_mapping"] == 1


def test_mapping_two_labels_to_one_keeps_two_entities(tmp_path):
    (note,) = read(tmp_path, "a\tB-Disease\nb\tB-Illness\nc\tI-Illness\n")
    assert mentions(note) == [("a", "Disease"), ("b c", "Disease")]


def test_an_ambiguous_file_is_repaired_and_counted(tmp_path):
    counts = Counter()
    notes = read(tmp_path, "a\tI-Drug\n\nb\tB-Drug\nc\tI-Disease\n", counts=counts)
    assert [mentions(note) for note in notes] == [[("a", "Drug")], [("b", "Drug"), ("c", "Disease")]]
    assert counts["repaired_tags"] == 2


def test_columns_can_be_chosen(tmp_path):
    layout = ColumnLayout(word_column=1, tag_column=0)
    (note,) = read(tmp_path, "B-Drug\taspirin\t7\n", layout=layout)
    assert mentions(note) == [("aspirin", "Drug")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n\n# doc_id = d\n\n", "has no words"),
        ("a\tO\nb\n", "line 2: has a word but no label column"),
        ("a\tNN\tO\nb\tO\n", "line 2: has 2 columns where the first row of the file has 3"),
        ("a\tO\n\tO\n", "line 2: has a tag but no word"),
        ("a\tO\nb\t\n", "line 2: column -1 holds no tag; a tag is O"),
        ("a\tO\nb\tX-Disease\n", r"line 2: column -1 holds no tag \('X-Disease' is none\)"),
        ("a\tO\n\nb\tB-Gene\n", "train.tsv, line 3: label 'Gene' is not in the schema"),
        ("a\tS-Drug\nb\tI-Drug\n", "line 2: tag 'I-Drug' breaks the IOBES scheme"),
        ("a\tB-Drug\n\nb\tU-Drug\n", "line 1: tag 'B-Drug' breaks the BILOU scheme"),
        ("a\tS-Drug\nb\tU-Drug\n", "line 1: tag 'S-Drug' breaks the BILOU scheme"),
    ],
)
def test_bad_files_name_line_and_field(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, content)


def test_a_declared_scheme_is_strict(tmp_path):
    with pytest.raises(DataError, match="line 1: tag 'I-Drug' breaks the IOB2 scheme"):
        read(tmp_path, "a\tI-Drug\n", layout=ColumnLayout(scheme=TagScheme.IOB2))


def test_a_layout_beyond_the_columns_is_named(tmp_path):
    with pytest.raises(DataError, match="line 1: has 2 columns; columns 0 and 3 are asked for"):
        read(tmp_path, "a\tO\n", layout=ColumnLayout(tag_column=3))


def test_words_in_the_label_column_stay_out_of_the_message(tmp_path):
    with pytest.raises(DataError) as caught:
        read(tmp_path, "B-Disease\tPeterson\n")
    assert "Peterson" not in str(caught.value)
