"""A finished update is on the disk whole, private, and for exactly one round of one model."""

from __future__ import annotations

import stat

import numpy as np
import pytest

from client.spool import UpdateSpool
from common.records import ModelUpdate

UPDATE = ModelUpdate(
    fields={"delta": np.array([1.5, -0.0, np.inf], np.float32), "loss_sum": np.array([2.0], np.float32)},
    weight=1 / 3,
)


@pytest.fixture
def spool(tmp_path):
    return UpdateSpool(tmp_path / "spool", plan_hash="ab" * 32, run_id="run1")


def test_what_is_saved_comes_back_to_the_bit(spool):
    spool.save(UPDATE, server_round=2, model_hash="m")
    again = spool.load(server_round=2, model_hash="m")
    assert again is not None
    assert again.weight == UPDATE.weight
    assert {k: v.tobytes() for k, v in again.fields.items()} == {
        k: v.tobytes() for k, v in UPDATE.fields.items()
    }


@pytest.mark.parametrize(("server_round", "model_hash"), [(1, "m"), (3, "m"), (2, "n")])
def test_another_round_or_model_finds_nothing(spool, server_round, model_hash):
    spool.save(UPDATE, server_round=2, model_hash="m")
    assert spool.load(server_round=server_round, model_hash=model_hash) is None


@pytest.mark.parametrize(
    "other", [{"plan_hash": "cd" * 32, "run_id": "run1"}, {"plan_hash": "ab" * 32, "run_id": "run2"}]
)
def test_another_plan_or_run_finds_nothing(spool, other):
    spool.save(UPDATE, server_round=2, model_hash="m")
    stranger = UpdateSpool(spool.folder, **other)
    assert stranger.load(server_round=2, model_hash="m") is None
    # Nor does it where a file was given the other's name.
    spool.path.rename(stranger.path)
    assert stranger.load(server_round=2, model_hash="m") is None


def test_only_the_owner_can_read_it(spool):
    spool.save(UPDATE, server_round=1, model_hash="m")
    assert stat.S_IMODE(spool.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(spool.folder.stat().st_mode) == 0o700


def test_a_later_round_replaces_the_earlier_one(spool):
    spool.save(UPDATE, server_round=1, model_hash="m")
    spool.save(UPDATE, server_round=2, model_hash="n")
    assert [path.name for path in spool.folder.iterdir()] == [spool.path.name]
    assert spool.load(server_round=1, model_hash="m") is None


@pytest.mark.parametrize("size", [0, 4, 100])
def test_a_file_cut_short_is_no_update(spool, size):
    spool.save(UPDATE, server_round=1, model_hash="m")
    spool.path.write_bytes(spool.path.read_bytes()[:size])
    assert spool.load(server_round=1, model_hash="m") is None


def test_a_failed_write_keeps_the_earlier_file(spool, monkeypatch):
    spool.save(UPDATE, server_round=1, model_hash="m")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("client.spool.save_file", full)
    with pytest.raises(OSError, match="No space"):
        spool.save(UPDATE, server_round=2, model_hash="n")
    assert spool.load(server_round=1, model_hash="m") is not None
    assert len(list(spool.folder.iterdir())) == 1


def test_clear(spool):
    spool.clear()
    spool.save(UPDATE, server_round=1, model_hash="m")
    spool.clear()
    assert spool.load(server_round=1, model_hash="m") is None
