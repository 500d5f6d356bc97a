"""The check scores patterns, a tagger and both; lists and secrets that cannot be used say why."""

from __future__ import annotations

import json

import pytest

from client.cli import main
from client.deidentification_check import check
from client.deidentification_setup import (
    build_deidentification,
    load_site_secret,
    make_site_secret,
    read_terms,
)
from client.phi import PhiSpan
from client.settings import DeidentificationTable
from common.errors import DataError, InputError, PlanError
from common.host import ModelHost
from common.model import save_model
from common.records import EntitySpan, Note


def test_scores_are_strict_and_by_character():
    note = Note(
        note_id="n",
        text="Ann Lee 12 years",
        spans=(EntitySpan(start=0, end=7, label="PERSON"), EntitySpan(start=8, end=10, label="AGE")),
    )
    found = (PhiSpan(start=0, end=3, kind="PERSON"), PhiSpan(start=8, end=16, kind="AGE"))
    scores = check([note], lambda text: found).to_dict()
    assert scores["strict"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 2}
    assert scores["per_type"]["PERSON"]["leak_recall"] == 3 / 6
    assert scores["per_type"]["PERSON"]["character_precision"] == 1.0
    assert scores["per_type"]["AGE"]["leak_recall"] == 1.0
    assert scores["per_type"]["AGE"]["character_precision"] == 2 / 7
    assert scores["leak_recall"] == 5 / 8
    assert scores["per_thousand_tokens"] == {"PERSON": 250.0, "AGE": 250.0}


def test_what_another_type_covers_does_not_leak():
    note = Note(note_id="n", text="Lee", spans=(EntitySpan(start=0, end=3, label="PERSON"),))
    scores = check([note], lambda text: (PhiSpan(start=0, end=3, kind="LOCATION"),)).to_dict()
    assert scores["per_type"]["PERSON"]["leak_recall"] == 1.0
    assert scores["per_type"]["PERSON"]["strict"]["recall"] == 0.0
    assert scores["per_type"]["LOCATION"]["character_precision"] == 1.0


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "data").mkdir()
    text = "Seen by Dr. Lee on 03/04/2016."
    spans = [{"start": 12, "end": 15, "label": "NAME"}, {"start": 19, "end": 29, "label": "DATE"}]
    (tmp_path / "data" / "devel.jsonl").write_text(
        json.dumps({"id": "a", "text": text, "spans": spans}) + "\n"
    )
    (tmp_path / "phi.toml").write_text(
        '[task]\nentity_types = ["PERSON", "DATE"]\n[task.label_map]\nNAME = "PERSON"\n'
        "[model]\nmax_tokens = 32\nstride = 4\n"
    )
    return tmp_path


def test_a_tagger_is_checked_beside_the_patterns(corpus, call, make_plan):
    host = ModelHost.build(make_plan(task__entity_types=["PERSON", "DATE"]), device="cpu")
    save_model(host.model, host.encoding.tokenizer, corpus / "tagger")
    arguments = ("--data", corpus / "data", "--plan", corpus / "phi.toml", "--json", corpus / "out.json")
    code, _, err = call(main, "deidentify-check", *arguments, "--tagger", corpus / "tagger")
    assert code == 0, err
    arms = json.loads((corpus / "out.json").read_text())["arms"]
    assert list(arms) == ["patterns", "tagger", "both"]
    assert arms["patterns"]["strict"]["f1"] == 1.0
    assert arms["both"]["leak_recall"] == 1.0
    assert (corpus / "out.json").stat().st_mode & 0o777 == 0o600


def test_a_corpus_without_gold_phi_is_refused(corpus, call):
    (corpus / "data" / "devel.jsonl").write_text('{"id": "a", "text": "Fine.", "spans": []}\n')
    code, _, err = call(
        main,
        "deidentify-check",
        "--data",
        corpus / "data",
        "--plan",
        corpus / "phi.toml",
        "--json",
        corpus / "o",
    )
    assert code == 2
    assert "has no gold PHI" in err


def test_an_empty_line_in_a_list_is_told_with_its_line(tmp_path):
    path = tmp_path / "staff.txt"
    path.write_text("Ann Lee\n\nBob Ray\n")
    with pytest.raises(DataError, match="staff.txt, line 2: is empty"):
        read_terms(path)


def test_the_secret_is_private_and_never_replaced(tmp_path):
    path = tmp_path / "secret"
    make_site_secret(path)
    assert len(load_site_secret(path)) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="never"):
        make_site_secret(path)
    path.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        load_site_secret(path)


def test_surrogates_need_a_secret():
    with pytest.raises(PlanError, match=r"deidentification\.secret is missing"):
        build_deidentification(DeidentificationTable(mode="surrogate"))


def test_a_tagger_map_that_names_no_label_of_the_tagger(tmp_path, make_plan):
    host = ModelHost.build(make_plan(), device="cpu")
    save_model(host.model, host.encoding.tokenizer, tmp_path / "tagger")
    table = DeidentificationTable(tagger=tmp_path / "tagger", tagger_map=(("NAME", "PERSON"),))
    with pytest.raises(PlanError, match="which the tagger has not"):
        build_deidentification(table)
