"""What a run leaves for people and for programs: `report.html` and `result.json`."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from common.validation import require_float, require_text

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
class SitePrivacy:
    """What one site's ledger says that the run has cost.

    Attributes:
        site: The site's name.
        epsilon: The privacy loss's upper bound, at `delta`; above 0.
        delta: The probability with which the bound may fail, in (0, 1).
        unit: `record`, `document` or `patient`: what one clipped contribution covers.
        relation: The neighbouring relation, such as `add-or-remove-one`.
        mode: `local` or `distributed`.
    """

    site: str
    epsilon: float
    delta: float
    unit: str
    relation: str
    mode: str = "local"

    def __post_init__(self) -> None:
        """Refuse an epsilon that does not say what it is of."""
        require_text("site", self.site)
        require_float("epsilon", self.epsilon, minimum=0.0, maximum=1e9)
        require_float("delta", self.delta, minimum=0.0, maximum=1.0, open_minimum=True)
        require_text("unit", self.unit)
        require_text("relation", self.relation)


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """Everything that a run's report shows. It holds numbers, names and the plan, and no clinical text.

    Attributes:
        name: The run's name.
        run_id: fedward's run id.
        evaluation: The final model on the test set: `micro`, `macro`, `weighted` and each type in
            `per_entity` with precision, recall, f1 and support; optionally each tag in `token`.
        history: One row per round: `round` and, where known, `micro_f1`, `micro_precision`,
            `micro_recall`, `train_loss`, `devel_loss`, `invited`, `participants`, `cohort` (sites that
            shared keys) and `durations` (seconds by stage).
        planned_rounds: How many rounds the plan asks for.
        sites: The names of the sites.
        privacy: One entry for each site that spent privacy budget; empty if the run was not private.
        secure_aggregation: Whether the server could open only sums.
        threshold: The least number of sites that can open a sum, with secure aggregation.
        plan_text: The plan's TOML.
        plan_hash: Its canonical SHA-256.
        seed: The plan's seed for the model's randomness.
        seconds: Wall-clock seconds of the whole run, resumes included.
        finished_at: When, as ISO 8601.
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
    privacy: Sequence[SitePrivacy] = ()
    secure_aggregation: bool = False
    threshold: int | None = None
    plan_text: str
    plan_hash: str
    seed: int
    seconds: float
    finished_at: str
    evaluated_on: str = "test"
    versions: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    @property
    def epsilon(self) -> float | None:
        """The largest epsilon over the sites, or None if the run was not private at every site."""
        covered = {entry.site for entry in self.privacy}
        if not covered or not covered >= set(self.sites):
            return None
        return max(entry.epsilon for entry in self.privacy)


def result_of(report: RunReport) -> dict[str, Any]:
    """Return the content of `result.json`; `epsilon` is null unless every site was private."""
    return {
        "name": report.name,
        "run_id": report.run_id,
        "plan_hash": report.plan_hash,
        "micro_f1": report.evaluation["micro"]["f1"],
        "macro_f1": report.evaluation.get("macro", {}).get("f1"),
        "per_entity": {name: dict(scores) for name, scores in report.evaluation["per_entity"].items()},
        "rounds": len(report.history),
        "sites": len(report.sites),
        "secure_aggregation": report.secure_aggregation,
        "epsilon": report.epsilon,
        "privacy": [_privacy_entry(entry) for entry in report.privacy],
        "seed": report.seed,
        "seconds": report.seconds,
        "finished_at": report.finished_at,
        "versions": dict(report.versions),
        "warnings": list(report.warnings),
    }


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on, without importing them."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _privacy_entry(entry: SitePrivacy) -> dict[str, Any]:
    """Return one site's privacy as JSON values."""
    return {
        "site": entry.site,
        "epsilon": entry.epsilon,
        "delta": entry.delta,
        "unit": entry.unit,
        "relation": entry.relation,
        "mode": entry.mode,
    }
