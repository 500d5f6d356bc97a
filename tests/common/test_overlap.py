"""Shared text is found wherever documents are cut; headings and short phrases are not shared text."""

import pytest

from common.overlap import overlapping
from common.records import Note

LONG = "A case of " + " ".join(f"word{i}" for i in range(30)) + "."


def note(text, note_id="n"):
    return Note(note_id=note_id, text=text)


@pytest.mark.parametrize(
    "text",
    [
        LONG,
        LONG.upper().replace(" ", "  "),
        f"Before it. {LONG} And after.",
        " ".join(LONG.split()[2:24]),
    ],
    ids=["the same", "case and spaces", "inside a document", "a sentence of it"],
)
def test_shared_text_is_found(text):
    assert overlapping([note(text, "public")], [note(LONG)]) == ["public"]


@pytest.mark.parametrize(
    "text", ["CASE REPORT", " ".join(LONG.split()[:10]), "Something else altogether " * 10, ""]
)
def test_headings_and_phrases_are_not(text):
    assert overlapping([note(text)], [note("Case report."), note(LONG)]) == []


def test_a_short_note_counts_as_a_whole():
    text = "Hereditary nonpolyposis colorectal carcinoma was diagnosed in two brothers."
    assert overlapping([note(text)], [note(text.lower())]) == ["n"]


def test_ids_alone_do_not_count():
    one = Note(note_id="doc-1", text="First text of one corpus.", document_id="doc-1")
    two = Note(note_id="doc-1", text="Another text of another corpus.", document_id="doc-1")
    assert overlapping([one], [two]) == []
