"""What a run leaves for people and for programs: the facts of `report.html` and `result.json`."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from common.accounting import Epsilon, compose_across_sites
from common.validation import require_text

_PACKAGES: Final = (
    "fedward",
    "flwr",
    "torch",
    "transformers",
    "opacus",
    "peft",
    "cryptography",
    "numpy",
    "safetensors",
)


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """Everything that a run's report shows. It holds numbers, names and the plan, and no clinical text.

    Attributes:
        name: The run's name.
        run_id: fedward's run id.
        evaluation: The chosen model on the test set: `micro`, `macro`, `weighted` and each type in
            `per_entity` with precision, recall, f1 and support; optionally each tag in `token`. Empty
            where there is no test set.
        history: The rows of `metrics.jsonl`: `round` and, where known, `sites` (names in the sum),
            `cohort` (how many shared keys), `train_loss`, `devel` (like `evaluation`), `seconds` and
            `seconds_by_stage`.
        planned_rounds: How many rounds the plan asks for.
        sites: The names of the sites in the roster.
        privacy: What each site that spent privacy budget claims; empty if the run was not private.
        composition: What each claim composes: `mechanism`, `trainings`, `steps`, `q`, `noise_multiplier`.
        warmup: What the public warm-up was trained on, and the scores of its model alone; None without one.
        secure_aggregation: Whether the server could open only sums.
        threshold: The least number of sites that can open a sum, with secure aggregation.
        plan_text: The plan's TOML.
        plan_hash: Its canonical SHA-256.
        seed: The plan's seed for the model's randomness.
        seconds: Wall-clock seconds of the run.
        finished_at: When, as ISO 8601.
        chosen_round: The round whose model was evaluated and saved.
        evaluated_on: What the evaluation's data set is called.
        versions: Package to version; see `installed_versions`.
        warnings: Sentences that a reader must see first, such as that isolation is off.
    """

    name: str
    run_id: str
    evaluation: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    planned_rounds: int
    sites: Sequence[str]
    privacy: Mapping[str, Epsilon] = field(default_factory=dict)
    composition: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    warmup: Mapping[str, Any] | None = None
    secure_aggregation: bool = False
    threshold: int | None = None
    plan_text: str
    plan_hash: str
    seed: int
    seconds: float
    finished_at: str
    chosen_round: int | None = None
    evaluated_on: str = "test"
    versions: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check what the page cannot do without."""
        require_text("plan_hash", self.plan_hash)
        require_text("run_id", self.run_id)

    @property
    def weakest(self) -> Epsilon | None:
        """The largest epsilon over the sites, or None unless every site claims one."""
        if not self.privacy or not set(self.privacy) >= set(self.sites):
            return None
        return max(self.privacy.values(), key=lambda claim: claim.epsilon)

    @property
    def across_sites(self) -> Epsilon | None:
        """The claim for somebody with records at every site, or None unless every site claims one."""
        if self.weakest is None or len({claim.unit for claim in self.privacy.values()}) > 1:
            return None
        return compose_across_sites(tuple(self.privacy.values()))

    @property
    def epsilon(self) -> float | None:
        """The weakest site's epsilon, or None unless every site claims a finite one."""
        weakest = self.weakest
        return weakest.epsilon if weakest and math.isfinite(weakest.epsilon) else None


def result_of(report: RunReport) -> dict[str, Any]:
    """Return the content of `result.json`; `epsilon` is null unless every site was private."""
    evaluation = report.evaluation
    return {
        "name": report.name,
        "run_id": report.run_id,
        "plan_hash": report.plan_hash,
        "micro_f1": evaluation.get("micro", {}).get("f1"),
        "macro_f1": evaluation.get("macro", {}).get("f1"),
        "per_entity": dict(evaluation.get("per_entity", {})),
        "evaluation": dict(evaluation),
        "rounds": len(report.history),
        "chosen_round": report.chosen_round,
        "sites": len(report.sites),
        "secure_aggregation": report.secure_aggregation,
        "epsilon": report.epsilon,
        "privacy": {site: _claim(report, site) for site in report.privacy},
        "privacy_across_sites": report.across_sites.to_dict() if report.across_sites else None,
        "warmup": None if report.warmup is None else dict(report.warmup),
        "seed": report.seed,
        "seconds": report.seconds,
        "finished_at": report.finished_at,
        "versions": dict(report.versions),
        "warnings": list(report.warnings),
    }


def _claim(report: RunReport, site: str) -> dict[str, Any]:
    """Return a site's claim, with what it composes where that is known."""
    claim = report.privacy[site].to_dict()
    composition = report.composition.get(site)
    return claim if composition is None else {**claim, "composition": dict(composition)}


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on, without importing them."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
