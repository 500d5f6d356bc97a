"""The demo: four hospitals of synthetic notes, one federation, a few minutes on two cores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from common.ingestion import Dataset
from common.plan import Plan
from simulation.engine import simulate
from simulation.synthetic import generate
from simulation.watch import RunWatch

NOTES_PER_HOSPITAL = 1000
"""Many notes, of which each step draws few: what hides one note is noise that only many others can drown."""

DEVEL_NOTES = 40
TEST_NOTES = 100


def run_demo(plan: Plan, out: Path, console: Console) -> dict[str, Any]:
    """Generate the notes, run the plan over them and return the result.

    Args:
        plan: A plan whose simulation partitions by the column `hospital`.
        out: The run's folder; an earlier run there is replaced, anything else is left and refused.
        console: Where the progress is shown.
    """
    sites = plan.simulation.sites
    console.print(
        f"{sites} synthetic hospitals with {NOTES_PER_HOSPITAL} notes each; no real record is involved.",
        soft_wrap=True,
    )
    corpus = generate(
        hospital_count=sites,
        notes_per_hospital=NOTES_PER_HOSPITAL,
        seed=plan.seed,
        devel_notes=DEVEL_NOTES,
        test_notes=TEST_NOTES,
    )
    data = Dataset(train=corpus.all_train, devel=corpus.devel, test=corpus.test)
    with RunWatch.on(console, plan.federation.rounds) as watch:
        return simulate(plan, data, out, replace_run=True, watch=watch)
