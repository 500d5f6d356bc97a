"""What a federation is held against: all records in one place, and each site with its own alone.

Same test set, same epochs, same seed, same trainer. The epoch is chosen on the development set, never on
the test set; the federation chooses its round in the same way.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.augmentation import Augmenter, EpochViews
from client.preprocessing_build import prepare_notes
from client.trainer import LocalTrainer
from common.errors import InputError
from common.files import write_atomically
from common.host import ModelHost
from common.ingestion import Dataset
from common.plan import Plan
from common.prediction import Evaluation, evaluate
from common.records import Note
from common.seeding import derive_seed, torch_seed
from common.validation import require_choice
from server.run_folder import read_metrics
from simulation.baselines_lexicon import lexicon_baseline
from simulation.engine import federate, set_threads, simulate, simulated_recipe, split_notes
from simulation.fraction import take_fraction
from simulation.watch import RunWatch

ARMS = ("lexicon", "central", "federated", "alone")

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """One model trained in one place.

    Attributes:
        evaluation: On the test set, with the weights of the chosen epoch.
        epoch: The epoch that did best on the development set (the last, without one).
        seconds: Training alone, evaluation left out.
        tokens: Word pieces that training passed over, padding left out.
    """

    evaluation: Evaluation
    epoch: int
    seconds: float
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        scores = self.evaluation.to_dict()
        return {
            "micro_f1": scores["micro"]["f1"],
            "per_entity": scores["per_entity"],
            "seconds": self.seconds,
            "epsilon": None,
            "epoch": self.epoch,
        }


def fit_centrally(
    plan: Plan,
    notes: Sequence[Note],
    data: Dataset,
    *,
    name: str,
    report: Report = lambda line: None,
    host: ModelHost | None = None,
) -> FitResult:
    """Train one model on notes in one place, with one optimizer, for the plan's rounds x local epochs.

    Args:
        plan: The plan; its `[privacy]` is not applied.
        notes: The training notes, before the plan's preparation.
        data: Development and test notes.
        name: Names the generator of the order and of dropout, and the report's lines.
        report: Receives a line an epoch.
        host: A model to use; its weights are overwritten.
    """
    host = host or ModelHost.build(plan)
    notes = prepare_notes(notes, simulated_recipe(plan))
    examples = host.encoding.examples(notes)
    trainer = LocalTrainer(host.model, plan, pad_id=host.encoding.pad_id)
    epochs = plan.federation.rounds * max(plan.federation.local_epochs, 1)
    augmenter = Augmenter.of(replace(plan, privacy=None) if plan.privacy else plan, notes)
    views = augmenter.views_per_unit if augmenter else 1
    steps = -(-views * len(examples) // plan.training.batch_size)
    session = trainer.session(total_steps=steps * epochs)
    best: tuple[float, int, NDArray[np.float32]] = (-1.0, 0, host.read())
    seconds = 0.0
    for epoch in range(1, epochs + 1):
        started = time.monotonic()
        windows = (
            examples
            if augmenter is None
            else EpochViews(
                augmenter=augmenter,
                notes=notes,
                windows=examples,
                encoding=host.encoding,
                seed=plan.seed,
                names=(name, epoch),
            )
        )
        with torch_seed(plan.seed, "train", name, epoch):
            session.run(windows, steps, derive_seed(plan.seed, "order", name, epoch))
        seconds += time.monotonic() - started
        score = _devel_score(plan, host, data, epoch)
        report(f"{name}: epoch {epoch}/{epochs}, devel F1 {score:.4f}, {seconds:.0f} s")
        if score > best[0]:
            best = (score, epoch, host.read())
    host.write(best[2])
    # Views are about as long as what they are views of.
    tokens = epochs * views * sum(example.num_tokens for example in examples)
    scores = evaluate(host.model, data.test, host.encoding, precision=plan.training.precision)
    return FitResult(evaluation=scores, epoch=best[1], seconds=seconds, tokens=tokens)


def compare(
    plan: Plan,
    data: Dataset,
    out: Path,
    *,
    seeds: Sequence[int],
    arms: Sequence[str] = ARMS,
    report: Report = lambda line: None,
    fraction: float = 1.0,
) -> dict[str, Any]:
    """Run the arms for each seed; what is finished in `out` already is read and not run again.

    With a `fraction` below 1, each seed trains on a part of the notes of its own choosing.

    Returns:
        What `compare.json` holds: per arm `micro_f1`, `seconds`, `epsilon` (means over seeds; `alone` is a
        list, one entry a site), with the spread and each seed's own values.
    """
    parts = {seed: take_fraction(data, fraction, seed=seed) for seed in seeds}
    for seed, part in parts.items():
        _check(plan, part, [seed], arms)
    set_threads(plan)
    table: dict[str, Any] = {}
    for seed in seeds:
        seeded = replace(plan, seed=seed)
        for arm in arms:
            for key, run in _jobs(arm, seeded, parts[seed], out, report):
                values = _kept(out / f"{key}-seed{seed}.json", seeded, run, fraction)
                report(f"{key}, seed {seed}: test F1 {values['micro_f1']:.4f}")
                table.setdefault(key, []).append(values)
                write_atomically(out / "compare.json", json.dumps(summarise(table), indent=2) + "\n")
    return summarise(table)


def summarise(table: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the means over seeds: `central`, `federated`, `lexicon`, and `alone` as a list over sites."""
    summary: dict[str, Any] = {}
    for key, runs in table.items():
        scores = [float(run["micro_f1"]) for run in runs]
        entry = {
            "micro_f1": fmean(scores),
            "micro_f1_spread": pstdev(scores),
            "seconds": fmean(float(run["seconds"]) for run in runs),
            "epsilon": runs[0].get("epsilon"),
            "per_entity": _mean_per_entity(runs),
            "runs": [{k: run[k] for k in ("seed", "micro_f1", "seconds") if k in run} for run in runs],
        }
        if key.startswith("alone-"):
            summary.setdefault("alone", []).append({"site": key.removeprefix("alone-"), **entry})
        else:
            summary[key] = entry
    if alone := summary.get("alone"):
        summary["alone_mean_micro_f1"] = fmean(entry["micro_f1"] for entry in alone)
    return summary


def _check(plan: Plan, data: Dataset, seeds: Sequence[int], arms: Sequence[str]) -> None:
    """Refuse what would stop the comparison half-way."""
    for arm in arms:
        require_choice("an arm of the comparison", arm, ARMS)
    if not arms:
        raise InputError(f"The comparison has no arm; name some of {', '.join(ARMS)}.")
    if {"federated", "alone"} & set(arms):
        for seed in seeds:
            federate(replace(plan, seed=seed), data.train)


def _jobs(
    arm: str, plan: Plan, data: Dataset, out: Path, report: Report
) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """Return the runs of one arm by key."""
    if arm == "lexicon":
        return [("lexicon", lambda: {"micro_f1": lexicon_baseline(data.train, data.test), "seconds": 0.0})]
    if arm == "central":
        return [
            (
                "central",
                lambda: fit_centrally(plan, data.train, data, name="central", report=report).to_dict(),
            )
        ]
    if arm == "federated":
        return [("federated", lambda: _federated(plan, data, out, report))]
    shares = split_notes(plan, data.train)
    return [
        (f"alone-site-{i + 1}", lambda s=share, i=i: _alone(plan, s, data, f"site-{i + 1}", report))  # type: ignore[misc]
        for i, share in enumerate(shares)
    ]


def _alone(plan: Plan, notes: Sequence[Note], data: Dataset, name: str, report: Report) -> dict[str, Any]:
    return fit_centrally(plan, notes, data, name=name, report=report).to_dict()


def _federated(plan: Plan, data: Dataset, out: Path, report: Report) -> dict[str, Any]:
    """Run the federation, resuming one that was interrupted."""
    folder = out / f"federated-seed{plan.seed}"
    resume = (folder / "plan.toml").exists()
    result = simulate(plan, data, folder, resume=resume, watch=RunWatch.lines(report, plan.federation.rounds))
    keys = ("micro_f1", "per_entity", "epsilon", "chosen_round", "warmup")
    training = sum(row["seconds_by_stage"]["train"] for row in read_metrics(folder))
    return {**{k: result[k] for k in keys if k in result}, "seconds": training}


def _kept(path: Path, plan: Plan, run: Callable[[], dict[str, Any]], fraction: float) -> dict[str, Any]:
    """Return the result that is on the disk for this plan and part of the data, or run and keep it."""
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if kept.get("plan_hash") == plan.hash and kept.get("fraction", 1.0) == fraction:
            return kept
    values = {**run(), "seed": plan.seed, "plan_hash": plan.hash, "fraction": fraction}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(values, indent=2) + "\n")
    return values


def _devel_score(plan: Plan, host: ModelHost, data: Dataset, epoch: int) -> float:
    """Return micro F1 on the development set; without one, later epochs count as better."""
    if not data.devel:
        return float(epoch)
    return evaluate(host.model, data.devel, host.encoding, precision=plan.training.precision).micro_f1


def _mean_per_entity(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    names = runs[0].get("per_entity", {})
    return {name: fmean(float(run["per_entity"][name]["f1"]) for run in runs) for name in names}
