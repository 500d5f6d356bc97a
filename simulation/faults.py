"""Faults on demand: sites that drop out, are slow, fail or crash at a chosen stage of a chosen round.

A fault is written `KIND:SITE@ROUND[/STAGE][:DURATION]`, for instance `drop:site-2@3`,
`slow:site-1@2:5s` or `fail:site-0@1/upload`. Rounds count from 1. Without a stage it strikes at `train`.

    drop    the site answers nothing from this stage to the end of the round
    crash   as `drop`, and what the site held in memory is gone: attempt secrets, the loaded model
    fail    the site answers this one stage with an error
    slow    the site answers this one stage after DURATION
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from common.errors import ValidationError
from common.validation import nearest, require_choice, require_float, require_int, require_text

KINDS: tuple[str, ...] = ("drop", "slow", "fail", "crash")
STAGES: tuple[str, ...] = ("train", "share_keys", "upload", "confirm", "unmask")

_LASTING = frozenset({"drop", "crash"})
_MAX_ROUND = 1_000_000
_MIN_SECONDS = 0.001
_MAX_SECONDS = 86_400.0
_SHAPE = re.compile(
    r"(?P<kind>[^:@/\s]+):(?P<site>[^:@/\s]+)@(?P<round>[^:@/\s]+)(?:/(?P<stage>[^:@/\s]+))?(?::(?P<time>[^:@/\s]+))?"
)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s)")
_EXAMPLES = "drop:site-2@3, slow:site-1@2:5s or fail:site-0@1/upload"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One fault of one site.

    Attributes:
        site: The site's name.
        round: The round, from 1.
        stage: The exchange at which it strikes, one of `STAGES`.
        kind: One of `KINDS`.
        seconds: How late a slow site answers, from a millisecond to a day; 0 for every other kind.

    Raises:
        ValidationError: A field is outside its range.
    """

    site: str
    round: int
    kind: str
    stage: str = "train"
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Check every field."""
        require_text("fault site", self.site)
        require_int("fault round", self.round, minimum=1, maximum=_MAX_ROUND)
        require_choice("fault kind", self.kind, KINDS)
        require_choice("fault stage", self.stage, STAGES)
        if self.kind == "slow":
            require_float("fault seconds", self.seconds, minimum=_MIN_SECONDS, maximum=_MAX_SECONDS)
        elif self.seconds != 0:
            raise ValidationError(
                f"fault seconds is {self.seconds!r} for {self.kind!r}; only a slow fault has a duration, "
                "leave it out."
            )

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        stage = "" if self.stage == "train" else f"/{self.stage}"
        # In the allowed range `repr` is exact and never uses an exponent.
        duration = f":{self.seconds!r}".removesuffix(".0") + "s" if self.kind == "slow" else ""
        return f"{self.kind}:{self.site}@{self.round}{stage}{duration}"

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Return the fault that `text` describes.

        Raises:
            ValidationError: The text is not of the shape, or a part is outside its range.
        """
        found = _SHAPE.fullmatch(text.strip()) if isinstance(text, str) else None
        if found is None:
            raise ValidationError(
                f"fault is {text!r}; it must be KIND:SITE@ROUND[/STAGE][:DURATION], like {_EXAMPLES}."
            )
        if not found["round"].isascii() or not found["round"].isdigit():
            raise ValidationError(
                f"fault {text!r} has round {found['round']!r}; it must be a whole number from 1."
            )
        if found["kind"] == "slow" and found["time"] is None:
            raise ValidationError(
                f"fault {text!r} has no duration; a slow fault ends in one, like :5s or :250ms."
            )
        return cls(
            kind=found["kind"],
            site=found["site"],
            round=int(found["round"]),
            stage=found["stage"] or "train",
            seconds=0.0 if found["time"] is None else _seconds(text, found["time"]),
        )

    def strikes(self, stage: str) -> bool:
        """Tell whether the site is affected at `stage` of the fault's round."""
        if self.kind in _LASTING:
            return STAGES.index(stage) >= STAGES.index(self.stage)
        return stage == self.stage


class FaultSchedule:
    """The faults of one run, looked up by site, round and stage.

    Args:
        faults: The faults; at most one for the same site, round and stage.
        sites: The names of the run's sites.
        rounds: The number of rounds.

    Raises:
        ValidationError: A fault names an unknown site or round, or two faults meet.
    """

    def __init__(self, faults: Iterable[Fault], *, sites: Sequence[str], rounds: int) -> None:
        """Check the faults against the run."""
        require_int("rounds", rounds, minimum=1, maximum=_MAX_ROUND)
        self._sites = frozenset(sites)
        self._faults: dict[tuple[str, int], list[Fault]] = {}
        for fault in faults:
            _require_in_run(fault, sites, rounds)
            of_round = self._faults.setdefault((fault.site, fault.round), [])
            if any(other.stage == fault.stage for other in of_round):
                raise ValidationError(
                    f"fault {str(fault)!r} meets another of {fault.site} at round {fault.round}, stage "
                    f"{fault.stage}; keep one of them."
                )
            of_round.append(fault)
            of_round.sort(key=lambda each: STAGES.index(each.stage))

    @classmethod
    def parse(cls, texts: Iterable[str], *, sites: Sequence[str], rounds: int) -> FaultSchedule:
        """Return the schedule that a plan's or command line's `texts` describe."""
        return cls([Fault.parse(text) for text in texts], sites=sites, rounds=rounds)

    def lookup(self, site: str, server_round: int, stage: str) -> Fault | None:
        """Return the fault that affects `site` at `stage` of the round, or None.

        The earliest fault of the round wins where a lasting one is still in force.

        Raises:
            ValidationError: The site or the stage is unknown.
        """
        require_choice("site", site, self._sites)
        require_choice("stage", stage, STAGES)
        of_round = self._faults.get((site, server_round), ())
        return next((fault for fault in of_round if fault.strikes(stage)), None)

    def __len__(self) -> int:
        """Return the number of faults."""
        return sum(map(len, self._faults.values()))


def _require_in_run(fault: Fault, sites: Sequence[str], rounds: int) -> None:
    """Refuse a fault of a site or round that the run does not have."""
    if fault.site not in sites:
        hint = nearest(fault.site, sites)
        raise ValidationError(
            f"fault {str(fault)!r} names the unknown site {fault.site!r}; the run has {_some(sites)}."
            + (f" Did you mean {hint!r}?" if hint else "")
        )
    if fault.round > rounds:
        raise ValidationError(
            f"fault {str(fault)!r} names round {fault.round}; the run has rounds 1 to {rounds}."
        )


def _some(sites: Sequence[str]) -> str:
    """Name the sites, or the first and last of many."""
    return ", ".join(sites) if len(sites) <= 8 else f"{len(sites)} sites from {sites[0]} to {sites[-1]}"


def _seconds(text: str, duration: str) -> float:
    """Read a duration such as `5s`, `0.5s` or `250ms`."""
    found = _DURATION.fullmatch(duration)
    if found is None:
        raise ValidationError(f"fault {text!r} has duration {duration!r}; write it like 5s, 0.5s or 250ms.")
    return float(found[1]) / (1000 if found[2] == "ms" else 1)
