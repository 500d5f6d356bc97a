"""The PHI plan trains federatedly on MEDDOCAN, and what it leaves is a recogniser of de-identification."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.deidentification_check import check
from client.deidentification_engine import PhiFinder
from client.deidentification_tagger import TaggerRecognizer
from client.phi import PHI_TYPES
from common.host import schema_of
from common.ingestion import Dataset, read_split
from common.plan import read_plan
from simulation.cli import PLANS
from simulation.engine import simulate

CORPUS = Path(__file__).parents[3] / "shared" / "data" / "meddocan-brat"

needs_corpus = pytest.mark.skipif(not CORPUS.is_dir(), reason=f"{CORPUS} is absent")


def test_the_plan_speaks_of_the_types_of_de_identification():
    task = read_plan(PLANS / "meddocan.toml").task
    assert set(task.entity_types) <= set(PHI_TYPES)
    assert {target for _, target in task.label_map} == set(task.entity_types)


@pytest.mark.corpus
@needs_corpus
def test_patterns_find_most_phi_of_meddocan():
    schema = schema_of(read_plan(PLANS / "meddocan.toml"))
    notes = list(read_split(CORPUS / "dev", schema, split="devel"))[:25]
    scores = check(notes, PhiFinder(languages=["es"]).find).to_dict()
    assert scores["leak_recall"] > 0.85
    assert scores["character_precision"] > 0.95
    assert scores["strict"]["f1"] > 0.8


@pytest.mark.corpus
@pytest.mark.slow
@needs_corpus
def test_the_plan_trains_and_its_model_is_a_recogniser(tiny_encoder, tmp_path):
    plan = read_plan(
        PLANS / "meddocan.toml",
        [
            f"model.encoder={tiny_encoder}",
            "model.max_tokens=32",
            "model.stride=8",
            "rounds=1",
            "simulation.sites=3",
            "simulation.threads=1",
        ],
    )
    schema = schema_of(plan)
    notes = list(read_split(CORPUS / "train", schema, split="train"))[:9]
    data = Dataset(train=tuple(notes[:6]), devel=tuple(notes[6:7]), test=tuple(notes[7:8]))
    simulate(plan, data, tmp_path / "run")
    tagger = TaggerRecognizer.open(tmp_path / "run" / "model", device="cpu")
    assert set(tagger.supported_entities) == set(plan.task.entity_types)
    finder = PhiFinder(languages=["es"], patterns=False, others=[tagger])
    scores = check(notes[8:], finder.find).to_dict()
    assert scores["notes"] == 1
