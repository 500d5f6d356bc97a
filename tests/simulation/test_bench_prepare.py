"""The bench of the preparation: real stages, real notes, names as documented."""

import pytest

from common.ingestion_jsonl import json_line
from simulation.bench_prepare import _measure, _notes


def test_the_notes_are_long_and_each_has_an_id_of_its_own():
    notes = list(_notes(3))
    assert len({note.note_id for note in notes}) == 3
    assert all(400 < len(note.text.split()) < 1500 for note in notes)


@pytest.mark.slow
def test_every_stage_has_a_share(tmp_path):
    source = tmp_path / "train.jsonl"
    source.write_text("".join(json_line(note) + "\n" for note in _notes(20)), encoding="utf-8")
    figures = _measure(source, tmp_path / "out", 20)
    shares = {name: value for name, value in figures.items() if name.endswith(".share")}
    assert {"deidentify.share", "tokenisation.share", "near_duplicates.share", "reading.share"} <= set(shares)
    assert sum(shares.values()) == pytest.approx(1)
    assert figures["notes_written"] == 20
    assert figures["notes_per_second"] > 0
    assert figures["index_bytes_per_note"] > 0
