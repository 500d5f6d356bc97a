"""What the server knows of the sites' privacy spending: public counts, and the ledger heads that it echoes.

A site's cost is a function of the plan and of how often the site was asked to train, both public. Every
request that carries a model is counted before it is sent, whether or not an answer comes: an asked site may
have charged its ledger and died. So the report's epsilon can be above what a ledger says, never below.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.accounting import Epsilon
from common.errors import InputError
from common.files import write_atomically
from common.mechanisms import PoissonSubsampledGaussian
from common.plan import Plan
from common.private_plan import most_trainings, round_mechanism, trainings_epsilon
from common.roster import Roster

_LONGEST_HEAD = 1000


@dataclass(frozen=True, kw_only=True)
class PrivacyClaim:
    """What one site's part in a run cost at most.

    Attributes:
        epsilon: The bound, with its delta, unit and relation.
        trainings: Rounds that the site was asked to train, repeated ones counted again; at most the plan's
            rounds and reserve, for a site's ledger admits no more.
        mechanism: What one training released.
    """

    epsilon: Epsilon
    trainings: int
    mechanism: PoissonSubsampledGaussian

    @property
    def composition(self) -> dict[str, str | int | float]:
        """What was composed so far, as plain JSON values."""
        return {
            "mechanism": self.mechanism.kind,
            "trainings": self.trainings,
            "steps": self.trainings * self.mechanism.steps,
            "q": self.mechanism.q,
            "noise_multiplier": self.mechanism.noise_multiplier,
        }


class PrivacyRecord:
    """The record of one run, in one file that survives a resume.

    Args:
        path: The file; made at the first change.
        plan: The run's plan.
        roster: The members.

    Raises:
        InputError: The file is damaged.
    """

    def __init__(self, path: Path, plan: Plan, roster: Roster) -> None:
        self.path = path
        self.plan = plan
        self.sites = [member.name for member in roster]
        self._asked: dict[str, int] = {}
        self._heads: dict[str, str] = {}
        if path.exists():
            self._read()

    def ask(self, sites: Iterable[str]) -> None:
        """Count one training for each site; on the disk when this returns, and called before the asking."""
        for site in sites:
            self._asked[site] = self._asked.get(site, 0) + 1
        self._write()

    def head(self, site: str) -> str:
        """Return the last ledger head that a site sent, to be sent back to it; "" where there is none."""
        return self._heads.get(site, "")

    def keep_head(self, site: str, head: object) -> None:
        """Keep the ledger head of a site's reply; the site checks it, the server only stores it."""
        if isinstance(head, str) and len(head) <= _LONGEST_HEAD:
            self._heads[site] = head
            self._write()

    def claims(self) -> dict[str, PrivacyClaim]:
        """Return what each site of the roster spent at most; empty where the plan is not private."""
        return {} if self.plan.privacy is None else {site: self._claim(site) for site in self.sites}

    def _claim(self, site: str) -> PrivacyClaim:
        trainings = min(self._asked.get(site, 0), most_trainings(self.plan))
        return PrivacyClaim(
            epsilon=trainings_epsilon(self.plan, trainings),
            trainings=trainings,
            mechanism=round_mechanism(self.plan),
        )

    def _read(self) -> None:
        try:
            kept = json.loads(self.path.read_text("utf-8"))
            self._asked = {str(site): int(times) for site, times in kept["asked"].items()}
            self._heads = {str(site): str(head) for site, head in kept["heads"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise InputError(
                f"{self.path}: the record of what sites were asked is damaged, so that no epsilon can be stated; "
                "restore it, or start a new run in another folder."
            ) from None

    def _write(self) -> None:
        text = json.dumps({"asked": self._asked, "heads": self._heads}, sort_keys=True)
        write_atomically(self.path, text + "\n")
