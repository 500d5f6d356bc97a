"""How much of a model's F1 stands when the text is mistyped, recased, reworded or names what was never seen.

The same notes are scored clean and perturbed. Perturbed notes keep their gold entities (`common.perturbations`),
so a lost point is the model's. `mention` replaces entities by mentions of their type that occur in no split of the
data folder: public ones from a lexicon, or made-up ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from torch import nn

from common.errors import InputError
from common.ingestion import find_split, read_annotated
from common.labels import LabelSchema
from common.lexicons import read_mentions, read_synonyms
from common.perturbations import Sources, gather, perturb
from common.prediction import Encoding, evaluate
from common.records import Note
from common.seeding import derive_seed
from common.tagger import open_tagger
from common.unseen_mentions import unseen_lexicon

CONDITIONS = ("typo", "case", "synonym", "mention")
_MADE_UP = 500

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class RobustnessJob:
    """What is measured.

    Attributes:
        model: A saved model's folder.
        data: Folder with the split.
        split: The split that is scored.
        label_map: `source=type` pairs for gold data with other labels.
        rate: The share of words that typos, case and synonyms change; all entities are replaced in `mention`.
        seeds: How often each condition is drawn.
        seed: The first seed.
        synonyms: A file of public synonyms; without it there is no `synonym`.
        mentions: A file of public mentions; without it unseen ones are made up.
    """

    model: Path
    data: Path
    split: str = "test"
    label_map: tuple[str, ...] = ()
    rate: float = 0.2
    seeds: int = 3
    seed: int = 13
    synonyms: Path | None = None
    mentions: Path | None = None


def measure_robustness(job: RobustnessJob, *, report: Report = lambda line: None) -> dict[str, Any]:
    """Score a model on clean and on perturbed notes.

    Returns:
        `clean` with `micro_f1` and `per_entity`; `perturbed` by condition, each with `micro_f1` (mean over
        seeds), `micro_f1_spread`, `drop` from clean, `changed_notes` (mean share) and `runs`; and the settings.

    Raises:
        InputError: The model, the data or a lexicon cannot be used.
    """
    tagger, encoding = open_tagger(job.model, job.label_map)
    notes = _notes(job.data, job.split, encoding.schema)
    if notes is None:
        raise InputError(
            f"{job.data} has no {job.split} split; it must hold a file or folder named {job.split}."
        )
    clean = evaluate(tagger, notes, encoding)
    report(f"clean: F1 {clean.micro_f1:.4f}")
    perturbed = {}
    for condition, sources in _conditions(job, notes, encoding.schema).items():
        runs = [_run(job, condition, sources, seed, tagger, encoding, notes) for seed in _seeds(job)]
        perturbed[condition] = _summary(runs, clean.micro_f1)
        report(f"{condition}: F1 {perturbed[condition]['micro_f1']:.4f}")
    return {
        "clean": {"micro_f1": clean.micro_f1, "per_entity": _per_entity(clean.to_dict())},
        "perturbed": perturbed,
        "settings": {
            "split": job.split,
            "notes": len(notes),
            "rate": job.rate,
            "mention_rate": 1.0,
            "seeds": list(_seeds(job)),
            "unseen_mentions": "made up" if job.mentions is None else "lexicon",
        },
    }


def _run(
    job: RobustnessJob,
    condition: str,
    sources: Callable[[int], Sources],
    seed: int,
    tagger: nn.Module,
    encoding: Encoding,
    notes: Sequence[Note],
) -> dict[str, Any]:
    """Perturb every note under one seed and score."""
    drawn = sources(seed)
    rate = 1.0 if condition == "mention" else job.rate
    changed = [
        perturb(note, condition, rate, drawn, random.Random(derive_seed(seed, condition, i, note.note_id)))
        for i, note in enumerate(notes)
    ]
    scores = evaluate(tagger, changed, encoding)
    different = sum(new.text != old.text for new, old in zip(changed, notes, strict=True))
    return {
        "seed": seed,
        "micro_f1": scores.micro_f1,
        "per_entity": _per_entity(scores.to_dict()),
        "changed_notes": different / len(notes),
    }


def _conditions(
    job: RobustnessJob, notes: Sequence[Note], schema: LabelSchema
) -> Mapping[str, Callable[[int], Sources]]:
    """Return what each condition draws from, by seed; `synonym` is there only with a lexicon."""
    known = _known_mentions(job, notes, schema)
    conditions: dict[str, Callable[[int], Sources]] = {
        name: lambda seed: Sources() for name in ("typo", "case")
    }
    if job.synonyms is not None:
        synonyms = Sources(synonyms=read_synonyms(job.synonyms).entries)
        conditions["synonym"] = lambda seed: synonyms
    if job.mentions is not None:
        public = read_mentions(job.mentions, entity_types=schema.entity_types).entries
        unseen = {
            label: tuple(m for m in listed if m.lower() not in known) for label, listed in public.items()
        }
        if not any(unseen.values()):
            raise InputError(
                f"{job.mentions} holds no mention that the data does not hold already; give others."
            )
        conditions["mention"] = lambda seed: Sources(mentions=unseen)
    else:
        own = gather(notes).mentions
        conditions["mention"] = lambda seed: Sources(
            mentions=unseen_lexicon(own, known, random.Random(derive_seed(seed, "unseen")), size=_MADE_UP)
        )
    return conditions


def _known_mentions(job: RobustnessJob, notes: Sequence[Note], schema: LabelSchema) -> set[str]:
    """Return the mentions, in lower case, of every split that is there."""
    splits = [_notes(job.data, split, schema) or () for split in ("train", "devel") if split != job.split]
    return {
        note.text[span.start : span.end].lower()
        for group in (notes, *splits)
        for note in group
        for span in note.spans
    }


def _notes(data: Path, split: str, schema: LabelSchema) -> tuple[Note, ...] | None:
    path = find_split(data, split)
    return None if path is None else read_annotated(path, schema, split=split)


def _seeds(job: RobustnessJob) -> Iterable[int]:
    return range(job.seed, job.seed + job.seeds)


def _summary(runs: Sequence[Mapping[str, Any]], clean: float) -> dict[str, Any]:
    """Return the mean and spread over seeds."""
    scores = [float(run["micro_f1"]) for run in runs]
    return {
        "micro_f1": fmean(scores),
        "micro_f1_spread": pstdev(scores),
        "drop": clean - fmean(scores),
        "changed_notes": fmean(run["changed_notes"] for run in runs),
        "runs": list(runs),
    }


def _per_entity(scores: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(values["f1"]) for name, values in scores["per_entity"].items()}
