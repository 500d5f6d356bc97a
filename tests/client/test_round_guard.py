"""The guard's rules across restarts (a new object on the same folder), processes and crashes."""

import json
import multiprocessing
import os
import threading

import pytest

from client.round_guard import RoundGuard
from common.errors import FedwardError, InputError, ProtocolRefused


def nonce(number):
    return number.to_bytes(32)


@pytest.fixture
def folder(tmp_path):
    RoundGuard(tmp_path / "spool").begin(2, 1, nonce(1))
    return tmp_path / "spool"


def test_the_file_is_private(folder):
    assert oct((folder / "secure-rounds.jsonl").stat().st_mode & 0o777) == "0o600"
    assert oct(folder.stat().st_mode & 0o777) == "0o700"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((1, 1, nonce(9)), "rounds only grow"),
        ((2, 1, nonce(9)), "attempts only grow"),
        ((3, 1, nonce(1)), "nonce of round 3, attempt 1 was used before"),
    ],
)
def test_after_a_restart_the_old_is_refused(folder, arguments, words):
    with pytest.raises(ProtocolRefused, match=words):
        RoundGuard(folder).begin(*arguments)


@pytest.mark.parametrize(
    "arguments", [(2, 2, nonce(2)), (2, 7, nonce(2)), (3, 1, nonce(2)), (9, 1, nonce(2))]
)
def test_after_a_restart_the_new_begins(folder, arguments):
    RoundGuard(folder).begin(*arguments)


def test_a_refused_beginning_leaves_no_trace(folder):
    before = (folder / "secure-rounds.jsonl").read_bytes()
    with pytest.raises(ProtocolRefused):
        RoundGuard(folder).begin(1, 1, nonce(9))
    assert (folder / "secure-rounds.jsonl").read_bytes() == before


def test_a_stage_is_answered_once_across_restarts(folder):
    RoundGuard(folder).answer(2, 1, "upload")
    with pytest.raises(ProtocolRefused, match="was answered before"):
        RoundGuard(folder).answer(2, 1, "upload")
    RoundGuard(folder).answer(2, 1, "confirm")


def test_after_confirm_the_round_is_closed_across_restarts(folder):
    RoundGuard(folder).answer(2, 1, "confirm")
    with pytest.raises(ProtocolRefused, match=r"confirmed already.*round 3"):
        RoundGuard(folder).begin(2, 2, nonce(2))
    RoundGuard(folder).begin(3, 1, nonce(2))


def test_an_older_attempt_is_not_answered_any_more(folder):
    RoundGuard(folder).begin(2, 2, nonce(2))
    for attempt in (1, 3):
        with pytest.raises(ProtocolRefused, match="not the newest attempt"):
            RoundGuard(folder).answer(2, attempt, "confirm")


def test_a_retry_masks_the_same_update(folder):
    RoundGuard(folder).answer(2, 1, "upload", update=b"u" * 32)
    RoundGuard(folder).begin(2, 2, nonce(2))
    with pytest.raises(ProtocolRefused, match="and this is another"):
        RoundGuard(folder).answer(2, 2, "upload", update=b"v" * 32)
    RoundGuard(folder).answer(2, 2, "upload", update=b"u" * 32)
    RoundGuard(folder).begin(3, 1, nonce(3))
    RoundGuard(folder).answer(3, 1, "upload", update=b"v" * 32)


def test_the_line_is_on_disk_before_the_call_returns(folder, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_size))
    guard = RoundGuard(folder)
    flushed.clear()
    guard.answer(2, 1, "confirm")
    assert flushed == [(folder / "secure-rounds.jsonl").stat().st_size]


def test_a_line_that_a_crash_left_unfinished_does_not_count(folder):
    path = folder / "secure-rounds.jsonl"
    whole = path.read_bytes()
    with path.open("ab") as out:
        out.write(b'{"round": 2, "attempt": 1, "sta')
    RoundGuard(folder).answer(2, 1, "confirm")
    lines = path.read_bytes()
    assert lines.startswith(whole)
    assert json.loads(lines.splitlines()[-1]) == {"round": 2, "attempt": 1, "stage": "confirm"}


@pytest.mark.parametrize(
    "line", [b"garbage\n", b"[]\n", b'{"round": 1}\n', b'{"round": "x", "attempt": 1}\n']
)
def test_a_damaged_record_answers_nothing(folder, line):
    with (folder / "secure-rounds.jsonl").open("ab") as out:
        out.write(line)
    with pytest.raises(FedwardError, match="line 2: the round guard is damaged"):
        RoundGuard(folder)


def test_a_record_that_others_can_read_is_refused(folder):
    (folder / "secure-rounds.jsonl").chmod(0o640)
    with pytest.raises(InputError, match=r"mode 0640.*chmod 600"):
        RoundGuard(folder)


def test_a_link_or_an_unusable_folder_is_refused(tmp_path):
    (tmp_path / "target").write_bytes(b"")
    (tmp_path / "secure-rounds.jsonl").symlink_to(tmp_path / "target")
    with pytest.raises(InputError, match="cannot be opened"):
        RoundGuard(tmp_path)
    with pytest.raises(InputError, match="cannot be made"):
        RoundGuard(tmp_path / "target" / "below")


def test_a_full_disk_stops_the_answer(folder, monkeypatch):
    guard = RoundGuard(folder)
    monkeypatch.setattr(os, "write", lambda handle, data: len(data) - 1)
    with pytest.raises(FedwardError, match="cannot be written"):
        guard.answer(2, 1, "confirm")


def test_of_many_threads_one_answers(folder):
    outcomes = []

    def answer():
        try:
            RoundGuard(folder).answer(2, 1, "unmask")
            outcomes.append("answered")
        except ProtocolRefused:
            outcomes.append("refused")

    threads = [threading.Thread(target=answer) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["answered"] + ["refused"] * 7


def _begin(folder, queue):
    try:
        RoundGuard(folder).begin(3, 1, os.urandom(32))
        queue.put("began")
    except ProtocolRefused:
        queue.put("refused")


def test_of_two_processes_one_begins(folder):
    context = multiprocessing.get_context("forkserver")
    queue = context.Queue()
    workers = [context.Process(target=_begin, args=(folder, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    outcomes = sorted(queue.get(timeout=30) for _ in workers)
    for worker in workers:
        worker.join()
    assert outcomes == ["began", "refused"]
