"""The last figure of `fedward-sim bench secagg`: what masking adds to a whole round, training included."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.host import ModelHost
from common.ingestion import Dataset
from common.plan import Plan
from server.run_folder import read_metrics
from simulation.engine import simulate
from simulation.synthetic import generate
from simulation.synthetic_lexicon import LABELS


def measure_round(*, sites: int, notes: int, repeats: int) -> dict[str, float]:
    """Time secure and plain rounds in turn, in this process, on the embedded encoder with all weights trained.

    Args:
        sites: Sites of the cohort.
        notes: Synthetic notes of each site, about 120 word pieces each.
        repeats: Rounds of either kind; the medians are compared.

    Returns:
        `round.time_ratio` (secure to plain), the medians behind it, and the seconds of the secure stages.
    """
    plan = Plan.from_table(
        {
            "task": {"entity_types": list(LABELS)},
            "federation": {"rounds": 1},
            "simulation": {"sites": sites, "partition": "column"},
        }
    )
    corpus = generate(hospital_count=sites, notes_per_hospital=notes, seed=11, devel_notes=0, test_notes=1)
    data = Dataset(train=corpus.all_train)
    host = ModelHost.build(plan)
    rows: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for repeat in range(repeats):
        for secure in (True, False):
            section = replace(plan.secure_aggregation, enabled=secure)
            rows[secure].append(_round(replace(plan, seed=repeat, secure_aggregation=section), data, host))
    secure_seconds, plain_seconds = (
        statistics.median(row["seconds"] for row in rows[kind]) for kind in (True, False)
    )
    return {
        "round.time_ratio": secure_seconds / plain_seconds,
        "round.secure_seconds": secure_seconds,
        "round.plain_seconds": plain_seconds,
        "round.sites": float(sites),
        **{
            f"round.{stage}_seconds": statistics.median(row["seconds_by_stage"][stage] for row in rows[True])
            for stage in ("train", "share_keys", "upload", "confirm", "unmask")
        },
    }


def _round(plan: Plan, data: Dataset, host: ModelHost) -> dict[str, Any]:
    """Run one round in a folder of its own and return its row of metrics."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        simulate(plan, data, out, host=host)
        (row,) = read_metrics(out)
    return row
