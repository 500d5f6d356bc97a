"""The audit log: what it refuses to hold, and every way of breaking it that it notices."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from common.audit_log import FIELDS, KINDS, AuditLog, check_values, verify
from common.errors import DataError, FedwardError, ValidationError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PLAN = "a" * 64


def filled(path: Path, *, key: Ed25519PrivateKey | None = KEY, lines: int = 5) -> AuditLog:
    log = AuditLog(path, key=key)
    for number in range(lines):
        log.append(KINDS[number % 5], plan_hash=PLAN, server_round=number, epsilon=0.5)
    return log


def test_what_was_appended_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    filled(path)
    entries = verify(path, key=KEY.public_key())
    assert [one.kind for one in entries] == list(KINDS)
    assert [one.values["server_round"] for one in entries] == [0, 1, 2, 3, 4]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_unsigned_logs_are_chained_too(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    filled(path, key=None)
    assert len(verify(path)) == 5
    with pytest.raises(DataError, match=r"audit.jsonl, line 1: .*not signed with the key"):
        verify(path, key=KEY.public_key())


@pytest.mark.parametrize("line", [1, 3, 5])
@pytest.mark.parametrize("what", ["value", "time", "kind", "signature", "resealed", "junk", "space"])
def test_the_first_changed_line_is_named(tmp_path: Path, line: int, what: str) -> None:
    path = tmp_path / "audit.jsonl"
    filled(path)
    lines = path.read_text().splitlines(keepends=True)
    entry = json.loads(lines[line - 1])
    if what == "value":
        entry["values"]["epsilon"] = 0.1
    elif what == "time":
        entry["time"] = "2001-01-01T00:00:00.000+00:00"
    elif what == "kind":
        entry["kind"] = "release" if entry["kind"] != "release" else "round"
    elif what == "signature":
        entry["signature"] = "0" * 128
    elif what == "resealed":
        # The forger recomputes every hash, and lacks only the key.
        forged = tmp_path / "forged.jsonl"
        filled(forged, key=Ed25519PrivateKey.generate(), lines=line)
        entry = json.loads(forged.read_text().splitlines()[line - 1])
    spelled = json.dumps(entry, sort_keys=True, separators=(",", ":")) + "\n"
    lines[line - 1] = "{]\n" if what == "junk" else " " + spelled if what == "space" else spelled
    path.write_text("".join(lines))
    with pytest.raises(DataError, match=f"line {line}: ") as caught:
        verify(path, key=KEY.public_key())
    assert caught.value.line == line


@pytest.mark.parametrize(
    ("order", "broken"), [([0, 1, 3, 4], 3), ([1, 2, 3, 4], 1), ([0, 2, 1, 3, 4], 2), ([0, 1, 1, 2], 3)]
)
def test_removed_moved_and_repeated_lines(tmp_path: Path, order: list[int], broken: int) -> None:
    path = tmp_path / "audit.jsonl"
    filled(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[number] for number in order))
    with pytest.raises(DataError, match=f"line {broken}: "):
        verify(path, key=KEY.public_key())


def test_a_cut_end_is_noticed_against_a_known_head(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    filled(path)
    last = verify(path)[-1]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    assert len(verify(path)) == 4  # The chain alone cannot tell: the documentation says so.
    with pytest.raises(DataError, match="its end was cut off"):
        verify(path, head=(last.line, last.hash))


def test_a_line_that_a_crash_cut_short_makes_room(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = filled(path)
    with path.open("ab") as file:
        file.write(b'{"hash":"12')
    with pytest.raises(DataError, match=r"line 6: .*cut short"):
        verify(path)
    log.append("round", server_round=6)
    assert [one.line for one in verify(path, key=KEY.public_key())] == [1, 2, 3, 4, 5, 6]


def test_appending_reads_only_the_end(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    filled(path, lines=40)  # Longer than one block of the backwards reader.
    assert path.stat().st_size > 3 * 4096
    assert len(verify(path, key=KEY.public_key())) == 40


def test_a_full_disk_leaves_the_log_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.jsonl"
    log = filled(path)
    before = path.read_bytes()
    real = os.pwrite

    def half(handle: int, content: bytes, offset: int) -> int:
        real(handle, content[: len(content) // 2], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", half)
    with pytest.raises(FedwardError, match=r"audit log cannot be written \(No space left"):
        log.append("round", server_round=9)
    assert path.read_bytes() == before


def test_processes_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    code = (
        "import sys, pathlib; from common.audit_log import AuditLog;"
        "log = AuditLog(pathlib.Path(sys.argv[1]));"
        "[log.append('round', server_round=number) for number in range(20)]"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(3)]
    assert [one.wait(60) for one in writers] == [0, 0, 0]
    assert len(verify(path)) == 60


NOTE = "Mrs Smith, 54, was admitted with chest pain on 3 May."


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_no_field_holds_clinical_text(tmp_path: Path, field: str) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    for text in (NOTE, "chest pain", "", "x" * 65, ["a"], {"a": 1}, None, 1.5j, "naïve", "a\n"):
        with pytest.raises(ValidationError) as caught:
            log.append("round", **{field: text})  # type: ignore[arg-type]
        assert "Smith" not in str(caught.value)
        assert "chest" not in str(caught.value)
    assert not log.path.exists()


def test_unknown_fields_and_kinds(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    with pytest.raises(ValidationError, match="unknown key 'note_text'"):
        log.append("round", note_text="x")
    with pytest.raises(ValidationError, match="audit kind"):
        log.append("gossip", server_round=1)


@given(text=st.text(min_size=1, max_size=80).filter(lambda text: any(c.isspace() for c in text)))
@settings(max_examples=60, deadline=None)
def test_nothing_with_a_space_gets_in(text: str) -> None:
    for field in FIELDS:
        with pytest.raises(ValidationError):
            check_values("round", {field: text})


def test_verifying_holds_a_file_to_the_same_allow_list(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    filled(path, key=None, lines=1)
    line = path.read_text().replace('"server_round":0', f'"note":"{NOTE}"')
    path.write_text(line)
    with pytest.raises(DataError, match="line 1: the line is not an entry") as caught:
        verify(path)
    assert "Smith" not in str(caught.value)
