"""Flower's own engine: the same weights as in this process, and each site in one process for the whole run."""

import importlib.util
import json

import numpy as np
import pytest

from common.errors import InputError
from server.checkpoint import CheckpointStore
from simulation import ray_engine
from simulation.engine import simulate
from simulation.ray_engine import Placement

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


def test_without_ray_the_error_says_what_to_install(monkeypatch, tmp_path, make_plan, make_data):
    monkeypatch.setattr(ray_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'fedward\[ray\]'"):
        simulate(make_plan(), make_data(), tmp_path / "run", engine="ray")
    assert not (tmp_path / "run").exists()


@needs_ray
def test_faults_are_refused(tmp_path, make_plan, make_data):
    with pytest.raises(InputError, match="in-process engine alone"):
        simulate(make_plan(), make_data(), tmp_path / "run", engine="ray", faults=["drop:site-1@1"])
    assert not (tmp_path / "run").exists()


def test_an_unknown_engine_is_refused(tmp_path, make_plan, make_data):
    with pytest.raises(InputError, match="Did you mean 'ray'"):
        simulate(make_plan(), make_data(), tmp_path / "run", engine="rya")


@pytest.mark.parametrize(
    ("sites", "cores", "workers", "threads"), [(8, 2, 2, 1), (1, 4, 1, 4), (3, 16, 3, 5)]
)
def test_placement_on_cores(monkeypatch, make_plan, sites, cores, workers, threads):
    monkeypatch.setattr(ray_engine.os, "sched_getaffinity", lambda pid: set(range(cores)))
    placement = Placement.choose(make_plan(simulation__threads=0), sites=sites, device="cpu")
    assert (placement.workers, placement.threads, placement.gpus) == (workers, threads, 0)


def test_placement_gives_each_actor_a_gpu(monkeypatch, make_plan):
    monkeypatch.setattr(ray_engine.torch.cuda, "device_count", lambda: 2)
    assert Placement.choose(make_plan(), sites=8, device="auto").workers == 2
    assert Placement.choose(make_plan(), sites=8, device="auto").gpus == 1
    with pytest.raises(InputError, match="give auto, cuda or cpu"):
        Placement.choose(make_plan(), sites=8, device="cuda:1")


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own: it leaves sockets and files to the interpreter.
def test_ray_and_this_process_give_the_same_weights(tmp_path, make_plan, make_data):
    plan, data = make_plan(federation__minimum_cohort=3, federation__train_deadline=600.0), make_data()
    here = simulate(plan, data, tmp_path / "here", device="cpu")
    ray = simulate(plan, data, tmp_path / "ray", device="cpu", engine="ray")
    weights = [CheckpointStore(tmp_path / name / "checkpoints").load(2).weights for name in ("here", "ray")]
    assert np.array_equal(*weights)
    assert ray["micro_f1"] == here["micro_f1"]
    assert ray["plan_hash"] == here["plan_hash"]
    rows = [json.loads(line) for line in (tmp_path / "ray" / "metrics.jsonl").read_text().splitlines()]
    assert [row["sites"] for row in rows] == [["site-1", "site-2", "site-3"]] * 2


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_secure_aggregation_needs_each_site_in_one_process(tmp_path, make_plan, make_data):
    """Keys and masks live in memory from `train` to `unmask`: this fails where a stage meets another process."""
    plan = make_plan(
        federation__rounds=1,
        federation__minimum_cohort=3,
        federation__attempts=1,
        federation__train_deadline=600.0,
        federation__exchange_deadline=600.0,
        secure_aggregation__enabled=True,
        secure_aggregation__dropout_tolerance=0.0,
    )
    result = simulate(plan, make_data(), tmp_path / "run", device="cpu", engine="ray")
    assert result["secure_aggregation"] is True
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert not row.get("lost")
    assert row["sites"] == ["site-1", "site-2", "site-3"]
