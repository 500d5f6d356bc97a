"""A checkpoint is whole or is not there; what is broken is seen."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from common.errors import InputError, PlanError, ValidationError
from server.checkpoint import Checkpoint, CheckpointStore

ROOT = Path(__file__).resolve().parents[2]


def checkpoint(round_number: int, size: int = 1000) -> Checkpoint:
    return Checkpoint(
        round=round_number,
        weights=np.full(size, round_number, dtype=np.float32),
        optimizer_state={"momentum": np.full(size, -round_number, dtype=np.float32)},
        history=[{"round": r, "micro_f1": r / 10} for r in range(1, round_number + 1)],
        rng_states={"torch": bytes(range(256)), "empty": b""},
        plan_hash="ab" * 32,
        run_id="run-1",
        extra={"attempt": 2},
    )


def test_what_is_saved_comes_back(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(checkpoint(3))
    loaded = store.latest()
    assert loaded is not None
    expected = checkpoint(3)
    assert loaded.weights.tobytes() == expected.weights.tobytes()
    assert loaded.optimizer_state["momentum"].tobytes() == expected.optimizer_state["momentum"].tobytes()
    assert list(loaded.history) == expected.history
    assert dict(loaded.rng_states) == expected.rng_states
    assert (loaded.round, loaded.plan_hash, loaded.run_id) == (3, "ab" * 32, "run-1")
    assert loaded.extra == {"attempt": 2}


def test_an_empty_folder_has_no_latest(tmp_path):
    assert CheckpointStore(tmp_path).latest() is None


def test_the_last_k_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for round_number in (1, 2, 3, 5):
        store.save(checkpoint(round_number))
    assert store.rounds() == [3, 5]


def test_rounds_after_the_saved_one_are_removed_even_with_one_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    store.path(9).write_bytes(b"broken")
    store.save(checkpoint(8))
    assert store.rounds() == [8]


def test_every_kind_of_damage_is_skipped_with_a_sentence(tmp_path):
    store = CheckpointStore(tmp_path, keep=5)
    store.save(checkpoint(1))
    whole = store.save(checkpoint(2)).read_bytes()
    generator = random.Random(5)
    flips = [bytearray(whole) for _ in range(60)]
    for flipped in flips:
        position = generator.randrange(len(flipped))
        flipped[position] ^= 1 << generator.randrange(8)
    cuts = [whole[: generator.randrange(len(whole))] for _ in range(20)]
    for damaged in [*flips, *cuts, b""]:
        store.path(2).write_bytes(damaged)
        said: list[str] = []
        loaded = store.latest(on_skip=said.append)
        # A flip in the header's padding changes nothing that is read; all others are caught.
        if loaded is not None and loaded.round == 2:
            assert loaded.weights.tobytes() == checkpoint(2).weights.tobytes()
            assert list(loaded.history) == checkpoint(2).history
            assert loaded.rng_states == checkpoint(2).rng_states
            continue
        assert loaded is not None
        assert loaded.round == 1
        assert len(said) == 1
        assert "round-000002" in said[0]


def test_a_changed_weight_is_caught(tmp_path):
    store = CheckpointStore(tmp_path)
    content = bytearray(store.save(checkpoint(2)).read_bytes())
    content[-2] ^= 1
    store.path(2).write_bytes(content)
    with pytest.raises(InputError, match="SHA-256"):
        store.load(2)


def test_changed_history_is_caught(tmp_path):
    store = CheckpointStore(tmp_path)
    content = store.save(checkpoint(2)).read_bytes()
    assert content.count(b"0.2") == 1
    store.path(2).write_bytes(content.replace(b"0.2", b"0.9"))
    with pytest.raises(InputError, match="SHA-256"):
        store.load(2)


def test_only_broken_checkpoints_is_an_error(tmp_path):
    store = CheckpointStore(tmp_path)
    store.path(1).write_bytes(b"nothing")
    with pytest.raises(InputError, match="None of the 1 checkpoints"):
        store.latest(on_skip=lambda _: None)


def test_another_plan_is_refused():
    checkpoint(1).require_plan("ab" * 32)
    with pytest.raises(PlanError, match="abababababab"):
        checkpoint(1).require_plan("cd" * 32)


def test_bad_fields_are_refused():
    with pytest.raises(ValidationError, match="round is -1"):
        Checkpoint(round=-1, weights=np.zeros(1, np.float32), plan_hash="a", run_id="b")
    with pytest.raises(InputError, match="float32"):
        Checkpoint(round=1, weights=np.zeros(1, np.float64), plan_hash="a", run_id="b")


def test_repr_shows_no_weights():
    assert "array" not in repr(checkpoint(1))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_on_the_way_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, call):
    store = CheckpointStore(tmp_path, keep=1)
    store.save(checkpoint(1))

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space"):
        store.save(checkpoint(2))
    assert [path.name for path in tmp_path.iterdir()] == ["round-000001.safetensors"]


WRITER = """
import sys
import numpy as np
from server.checkpoint import Checkpoint, CheckpointStore
store = CheckpointStore(sys.argv[1], keep=1)
start = store.latest(on_skip=sys.exit)
first = 1 if start is None else start.round + 1
for number in range(first, first + 100_000):
    vector = np.full(500_000, number, dtype=np.float32)
    store.save(Checkpoint(round=number, weights=vector, plan_hash="a", run_id="b",
                          optimizer_state={"momentum": vector}, history=[{"round": number}]))
    print(number, flush=True)
"""


def test_killed_at_any_moment_the_newest_file_is_whole(tmp_path):
    generator, last = random.Random(11), 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT, text=True
        )
        assert process.stdout is not None
        with process.stdout:
            line = process.stdout.readline()
            assert line, "the writer refused the checkpoint that the one before it left"
            assert int(line) > last
            time.sleep(generator.uniform(0.0, 0.08))
            process.send_signal(signal.SIGKILL)
            process.wait()
        broken: list[str] = []
        loaded = CheckpointStore(tmp_path, keep=1).latest(on_skip=broken.append)
        assert broken == []
        assert loaded is not None
        assert loaded.round >= int(line)
        assert (loaded.weights == loaded.round).all()
        assert (loaded.optimizer_state["momentum"] == loaded.round).all()
        assert list(loaded.history) == [{"round": loaded.round}]
        last = loaded.round


CRASHES = """
import os
import pathlib
import signal
import sys
import numpy as np
from safetensors.numpy import save
import server.checkpoint
from server.checkpoint import Checkpoint, CheckpointStore

def die(*ignored, **also_ignored):
    os.kill(os.getpid(), signal.SIGKILL)

def half(arrays, filename, metadata):
    content = save(arrays, metadata)
    pathlib.Path(filename).write_bytes(content[: len(content) // 2])
    die()

def at_second(call):
    calls = []
    return lambda *args: die() if calls else (calls.append(1), call(*args))

points = {
    "write": lambda: setattr(server.checkpoint, "save_file", half),
    "first fsync": lambda: setattr(os, "fsync", die),
    "rename": lambda: setattr(os, "replace", die),
    "second fsync": lambda: setattr(os, "fsync", at_second(os.fsync)),
    "prune": lambda: setattr(CheckpointStore, "_prune", die),
}
for name, arm in points.items():
    store = CheckpointStore(os.path.join(sys.argv[1], name), keep=1)
    make = lambda n: Checkpoint(round=n, weights=np.full(9999, n, np.float32), plan_hash="a", run_id="b")
    store.save(make(1))
    child = os.fork()
    if not child:
        arm()
        store.save(make(2))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    loaded = store.latest(on_skip=sys.exit)
    assert (loaded.weights == loaded.round).all()
    print(name, os.WTERMSIG(status), loaded.round, sep=",")
    store.save(make(3))
    assert os.listdir(store.folder) == ["round-000003.safetensors"]
"""


def test_killed_at_each_step_of_a_save(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CRASHES, str(tmp_path)], capture_output=True, cwd=ROOT, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    kill = int(signal.SIGKILL)
    assert done.stdout.splitlines() == [
        f"write,{kill},1",
        f"first fsync,{kill},1",
        f"rename,{kill},1",
        f"second fsync,{kill},2",
        f"prune,{kill},2",
    ]
