"""`fedward-sim bench scale`: what one more simulated site costs, and what federating costs over training.

Adapter module (flwr through the engine). Memory and set-up are measured over a hundred sites that take
one step on the embedded encoder's last layer, in a child process; the epoch and the padding on the whole encoder.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from client.trainer import LocalTrainer
from common.batching import batches_by_length, padding_waste
from common.host import ModelHost
from common.ingestion import Dataset
from common.plan import Plan
from common.records import Note
from common.seeding import torch_seed
from server.run_folder import read_metrics
from simulation.bench_child import in_child
from simulation.engine import federate, make_sites, set_threads, simulate
from simulation.synthetic import generate
from simulation.synthetic_lexicon import LABELS
from simulation.watch import RunWatch


def run(quick: bool) -> dict[str, float]:
    """Return the figures by name.

    Args:
        quick: Fewer sites, notes and repeats.
    """
    return {**_site_costs(quick), **_epoch_ratio(quick), "padding.waste": _padding(quick)}


def _plan(**sections: dict[str, Any]) -> Plan:
    table: dict[str, Any] = {
        "task": {"entity_types": list(LABELS)},
        "federation": {"rounds": 1},
        "simulation": {"threads": 1},
        **sections,
    }
    return Plan.from_table(table)


def _site_costs(quick: bool) -> dict[str, float]:
    """Compare a secure round of few sites with one of many, each in a process of its own."""
    few, many = (5, 20) if quick else (10, 100)
    small, large = in_child(_measure_sites, few), in_child(_measure_sites, many)
    return {
        "site.memory_mib": (large["peak_mib"] - small["peak_mib"]) / (many - few),
        "site.setup_ms": large["setup_seconds"] / many * 1000,
        "sites": float(many),
        "process.peak_mib": large["peak_mib"],
    }


def _measure_sites(sites: int) -> dict[str, float]:
    """Set up and run one secure round of so many sites on the embedded encoder's last layer."""
    import resource

    plan = _plan(
        simulation={"sites": sites, "threads": 1},
        model={"trained_layers": 1, "freeze_embeddings": True, "max_tokens": 64, "stride": 16},
        # One step of one window a site: what is measured is the site, not its training.
        federation={"rounds": 1, "local_epochs": 0, "local_steps": 1},
        training={"batch_size": 1},
    )
    corpus = generate(hospital_count=1, notes_per_hospital=sites * 4, seed=7, devel_notes=0, test_notes=1)
    host = ModelHost.build(plan)
    started = time.perf_counter()
    federation = federate(plan, corpus.all_train)
    with tempfile.TemporaryDirectory() as folder:
        make_sites(federation, host, Path(folder), RunWatch.silent(1))
        setup = time.perf_counter() - started
        data = Dataset(train=corpus.all_train, devel=(), test=())
        simulate(plan, data, Path(folder) / "run", host=host)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"peak_mib": peak, "setup_seconds": setup}


def _epoch_ratio(quick: bool) -> dict[str, float]:
    """Compare a round of four sites with a central epoch over the same notes, interleaved."""
    notes, repeats = (60, 1) if quick else (240, 3)
    plan = _plan()
    set_threads(plan)
    corpus = generate(hospital_count=4, notes_per_hospital=notes // 4, seed=3, devel_notes=0, test_notes=1)
    host = ModelHost.build(plan)
    central, federated, training = [], [], []
    for repeat in range(repeats):
        central.append(_central_seconds(plan, host, corpus.all_train))
        total, trained = _federated_seconds(replace(plan, seed=repeat), host, corpus.all_train)
        federated.append(total)
        training.append(trained)
    middle = statistics.median(central)
    return {
        "epoch.ratio_to_central": statistics.median(federated) / middle,
        "epoch.training_ratio_to_central": statistics.median(training) / middle,
        "epoch.central_seconds": middle,
    }


def _central_seconds(plan: Plan, host: ModelHost, notes: Sequence[Note]) -> float:
    """Time one epoch of central training."""
    examples = host.encoding.examples(notes)
    trainer = LocalTrainer(host.model, plan, pad_id=host.encoding.pad_id)
    steps = trainer.steps_per_round(len(examples))
    started = time.perf_counter()
    with torch_seed(plan.seed, "bench"):
        trainer.session(total_steps=steps).run(examples, steps, plan.seed)
    return time.perf_counter() - started


def _federated_seconds(plan: Plan, host: ModelHost, notes: Sequence[Note]) -> tuple[float, float]:
    """Time one secure round over the same notes: the round without evaluation, and its training alone."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        simulate(plan, Dataset(train=tuple(notes), devel=(), test=()), out, host=host)
        (row,) = read_metrics(out)
    return float(row["seconds"]), float(row["seconds_by_stage"]["train"])


def _padding(quick: bool) -> float:
    """Return the share of padding in the batches of one training epoch of synthetic notes."""
    plan = _plan()
    corpus = generate(
        hospital_count=4, notes_per_hospital=25 if quick else 120, seed=5, devel_notes=0, test_notes=1
    )
    host = ModelHost.build(plan)
    examples = host.encoding.examples(corpus.all_train)
    return padding_waste(batches_by_length(examples, batch_size=plan.training.batch_size))
