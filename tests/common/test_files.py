"""A replaced file is the old one or the new one."""

from __future__ import annotations

import os

import pytest

from common.files import remove_partial_files, replacing, write_atomically


def test_a_file_is_replaced_in_one_piece(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "one")
    write_atomically(path, "zwei ü")
    assert path.read_text("utf-8") == "zwei ü"
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
        assert partial.parent == path.parent
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_on_the_way_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.json"
    write_atomically(path, "old")

    def write_half() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


def test_data_and_name_reach_the_disk_in_order(tmp_path, monkeypatch):
    steps: list[str] = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append("fsync"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda *names: (steps.append("rename"), rename(*names)))
    write_atomically(tmp_path / "a", "x")
    assert steps == ["fsync", "rename", "fsync"]


def test_what_killed_writers_left_is_removed(tmp_path):
    (tmp_path / ".a.json.77.part").write_text("half")
    (tmp_path / "b.part").write_text("not ours")
    remove_partial_files(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["b.part"]
