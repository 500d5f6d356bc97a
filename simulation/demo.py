"""The demo: four hospitals of synthetic notes, one federation, a few minutes on two cores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from common.ingestion import Dataset
from common.plan import Plan
from simulation.engine import simulate
from simulation.synthetic import generate
from simulation.watch import RunWatch


@dataclass(frozen=True, kw_only=True)
class DemoNotes:
    """How many notes the demo writes.

    Attributes:
        hospital: Training notes of each hospital.
        devel: Development notes of the server.
        test: Test notes of the server.
        words: Least and largest length of a note to aim at.
    """

    hospital: int
    devel: int
    test: int
    words: tuple[int, int]


PLAIN = DemoNotes(hospital=80, devel=40, test=100, words=(30, 70))

# What hides one note is noise that only many others drown: many notes, short ones, of which each step draws few.
PRIVATE = DemoNotes(hospital=2000, devel=120, test=300, words=(12, 24))


def run_demo(plan: Plan, out: Path, console: Console) -> dict[str, Any]:
    """Generate the notes, run the plan over them and return the result.

    Args:
        plan: A plan whose simulation partitions by the column `hospital`; with `[privacy]`, there are more notes.
        out: The run's folder; an earlier run there is replaced, anything else is left and refused.
        console: Where the progress is shown.
    """
    sites, notes = plan.simulation.sites, PRIVATE if plan.privacy else PLAIN
    console.print(
        f"{sites} synthetic hospitals with {notes.hospital} notes each; no real record is involved.",
        soft_wrap=True,
    )
    if plan.warmup is not None:
        console.print(
            f"First a public warm-up on {plan.warmup.notes} other synthetic notes, whose words and styles are no "
            "hospital's.",
            soft_wrap=True,
        )
    corpus = generate(
        hospital_count=sites,
        notes_per_hospital=notes.hospital,
        seed=plan.seed,
        devel_notes=notes.devel,
        test_notes=notes.test,
        words=notes.words,
    )
    data = Dataset(train=corpus.all_train, devel=corpus.devel, test=corpus.test)
    with RunWatch.on(console, plan.federation.rounds) as watch:
        return simulate(plan, data, out, replace_run=True, watch=watch)
