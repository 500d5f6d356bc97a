"""A run's audit log holds every round, refusal and release, and an edit of it is found."""

from __future__ import annotations

import json

import numpy as np
import pytest

from common.audit_log import verify
from common.errors import DataError
from common.parameters import vector_hash
from server.checkpoint import CheckpointStore
from server.run_audit import AuditedListener, RunAudit
from simulation.engine import simulate


def kinds(entries):
    return [entry.kind for entry in entries]


def test_a_run_leaves_its_rounds_its_refusals_and_its_release(make_plan, make_data, tmp_path):
    plan, folder = make_plan(), tmp_path / "run"
    result = simulate(plan, make_data(), folder, device="cpu", faults=["fail:site-2@2"])
    entries = verify(folder / "audit.jsonl")
    assert kinds(entries) == ["round", "refusal", "round", "release"]
    first, refusal, second, release = (entry.values for entry in entries)
    assert {entry.values["run_id"] for entry in entries} == {result["run_id"]}
    assert (first["server_round"], first["sites"], first["code"]) == (1, 3, "opened")
    assert (refusal["site"], refusal["stage"], refusal["server_round"]) == ("site-2", "train", 2)
    assert (second["server_round"], second["sites"]) == (2, 2)
    checkpoint = CheckpointStore(folder / "checkpoints").latest()
    best = checkpoint.optimizer_state["best_weights"]
    assert release["model_hash"] == vector_hash(np.asarray(best, dtype=np.float32))


def test_an_edited_round_is_found(make_plan, tmp_path):
    audit = RunAudit(tmp_path / "audit.jsonl", make_plan(), "run-1")
    for number in (1, 2):
        audit.closed({"round": number, "sites": ["a", "b"], "attempts": 1})
    lines = (tmp_path / "audit.jsonl").read_text("utf-8").splitlines()
    edited = json.loads(lines[0])
    text = lines[0].replace('"sites":2', '"sites":3')
    assert text != lines[0], edited
    (tmp_path / "audit.jsonl").write_text("\n".join([text, lines[1]]) + "\n", "utf-8")
    with pytest.raises(DataError, match="line 1"):
        verify(tmp_path / "audit.jsonl")


def test_a_lost_round_says_so_and_the_listener_behind_hears_everything(make_plan, tmp_path):
    heard = []

    class Listener:
        def __getattr__(self, name):
            return lambda *arguments: heard.append(name)

    audit = RunAudit(tmp_path / "audit.jsonl", make_plan(), "run-1")
    listener = AuditedListener(Listener(), audit)
    listener.on_round(3, 8)
    listener.on_stage("share_keys", ["a"])
    listener.on_reply("share_keys", "a", "too_late")
    listener.on_reply("share_keys", "b", None)
    listener.on_wait(1, 2)
    listener.on_metrics({})
    audit.closed({"round": 3, "sites": [], "lost": True})
    refusal, lost = (entry.values for entry in verify(tmp_path / "audit.jsonl"))
    assert (refusal["server_round"], refusal["stage"], refusal["code"]) == (3, "share-keys", "too-late")
    assert (lost["code"], lost["sites"]) == ("lost", 0)
    assert heard == ["on_round", "on_stage", "on_reply", "on_reply", "on_wait", "on_metrics"]
