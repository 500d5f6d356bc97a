"""Lexicons: tab-separated, empty lines passed over and counted, other faults named by line and not quoted."""

from __future__ import annotations

import pytest

from common.errors import DataError
from common.lexicons import read_mentions, read_synonyms


def test_empty_lines_and_comments_are_counted(tmp_path):
    path = tmp_path / "s.tsv"
    path.write_text("# public\nPain\tache\tache\n\n  \npain\tsoreness  of back\n", encoding="utf-8")
    found = read_synonyms(path)
    assert found.entries == {"pain": ("ache", "soreness of back")}
    assert found.skipped == 3
    assert "ache" not in repr(found)


@pytest.mark.parametrize(
    ("text", "line"), [("pain\n", 1), ("a\tb\npain\t\n", 2), ("a\tb\n\tx\n", 2), ("a\tb\nsecretword\n", 2)]
)
def test_a_line_of_another_form_is_named_and_not_quoted(tmp_path, text, line):
    path = tmp_path / "s.tsv"
    path.write_text(text)
    with pytest.raises(DataError, match=f"line {line}: ") as caught:
        read_synonyms(path)
    assert "secretword" not in str(caught.value)


@pytest.mark.parametrize("text", ["Disease\n", "Disease\tgout\textra\n", "Diseases\tgout\n"])
def test_mentions_have_a_known_type(tmp_path, text):
    path = tmp_path / "m.tsv"
    path.write_text(text)
    with pytest.raises(DataError, match="line 1: "):
        read_mentions(path, entity_types=("Disease",))


@pytest.mark.parametrize("raw", [b"", b"\n\n", b"a\t\xff\n"])
def test_files_without_an_entry_or_in_another_encoding_are_refused(tmp_path, raw):
    path = tmp_path / "s.tsv"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"s\.tsv"):
        read_synonyms(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_synonyms(tmp_path / "absent.tsv", sha256="0" * 64)
