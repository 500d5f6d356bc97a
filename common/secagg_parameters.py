"""What a federation fixes about secure aggregation, and what one attempt at it is bound to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

from common.errors import ValidationError
from common.quantization import RingLayout
from common.validation import require_float, require_int
from common.wire_format import Writer

HASH_BYTES = 32
"""Length of every hash and of an attempt's nonce."""


class Stage(IntEnum):
    """The exchanges of an attempt in order: what a site answers next, and what the server collects."""

    ADVERTISE = 0
    SHARE_KEYS = 1
    UPLOAD = 2
    CONFIRM = 3
    UNMASK = 4
    OVER = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class SecureAggregationParameters:
    """The plan's `[secure_aggregation]`; sites recompute every threshold from it.

    Attributes:
        collusion_tolerance: Sites `c` that may collude with the server without any effect.
        threshold: The least number of sites that must remain, where more is wanted than the protocol
            needs; 0 asks for what it needs, `floor((n + c) / 2) + 1` of n.
        minimum_cohort: The fewest sites whose sum may be opened.
        bits: Bits per coordinate of real-valued fields, sign included.
        dropout_tolerance: Share of a cohort that may drop out; sizes the neighbourhoods of large cohorts.
        rounds: Most rounds of the plan, for the union bounds; a later round is refused.
        attempts: Most attempts per round, likewise.
        failure_bits: All failures of the plan together stay below 2 to the minus this.
        full_graph_limit: Up to so many sites, everyone is everyone's neighbour.
    """

    collusion_tolerance: int = 1
    threshold: int = 0
    minimum_cohort: int = 3
    bits: int = 20
    dropout_tolerance: float = 0.2
    rounds: int = 100
    attempts: int = 3
    failure_bits: int = 40
    full_graph_limit: int = 64

    def __post_init__(self) -> None:
        """Check every attribute."""
        require_int("collusion_tolerance", self.collusion_tolerance, minimum=0, maximum=4096)
        require_int("threshold", self.threshold, minimum=0, maximum=4096)
        require_int("minimum_cohort", self.minimum_cohort, minimum=2, maximum=4096)
        require_int("bits", self.bits, minimum=2, maximum=32)
        require_float("dropout_tolerance", self.dropout_tolerance, minimum=0.0, maximum=0.9)
        require_int("rounds", self.rounds, minimum=1, maximum=1_000_000)
        require_int("attempts", self.attempts, minimum=1, maximum=1000)
        require_int("failure_bits", self.failure_bits, minimum=20, maximum=128)
        require_int("full_graph_limit", self.full_graph_limit, minimum=2, maximum=4096)

    def cohort_threshold(self, sites: int) -> int:
        """Return t, the least integer above (n + c) / 2 and not below the plan's own threshold.

        With t > (n + c) / 2 two different sets cannot both find t signers or share holders of which c
        answer twice (Bonawitz et al. 2017, section 6.2, with c colluders counted).

        Args:
            sites: n, the sites that were asked to share keys, this one included.
        """
        return max((sites + self.collusion_tolerance) // 2 + 1, self.threshold)

    def needed_survivors(self, sites: int) -> int:
        """Return max(t, c + 2, minimum_cohort): fewer survivors are refused."""
        return max(self.cohort_threshold(sites), self.collusion_tolerance + 2, self.minimum_cohort)

    def check_cohort(self, sites: int) -> None:
        """Check that n sites can be aggregated at all.

        Raises:
            ValidationError: Even with no dropout, n sites cannot reach the needed survivors.
        """
        if sites < (needed := self.needed_survivors(sites)):
            raise ValidationError(
                f"A cohort of {sites} sites is too small: {needed} must remain, with a collusion tolerance "
                f"of {self.collusion_tolerance}, a threshold of {self.threshold} and a minimum cohort of "
                f"{self.minimum_cohort}."
            )

    def canonical(self) -> bytes:
        """Return the one encoding of these parameters, for hashing."""
        out = Writer().text("fedward secure aggregation parameters v1")
        out.u32(self.collusion_tolerance).u32(self.threshold).u32(self.minimum_cohort).u32(self.bits)
        out.f64(self.dropout_tolerance).u32(self.rounds).u32(self.attempts)
        return out.u32(self.failure_bits).u32(self.full_graph_limit).finish()


@dataclass(frozen=True, kw_only=True)
class AttemptContext:
    """What everything in one attempt is bound to.

    Attributes:
        plan_hash: SHA-256 of the plan, which covers the roster.
        model_hash: SHA-256 of the model that this round started from.
        parameters_hash: SHA-256 of the secure-aggregation parameters and the ring layout.
        round: The round, from 1.
        attempt: The attempt within the round, from 1.
        nonce: 32 bytes, never used before.
    """

    plan_hash: bytes
    model_hash: bytes
    parameters_hash: bytes
    round: int
    attempt: int
    nonce: bytes

    def __post_init__(self) -> None:
        """Check every attribute."""
        for name in ("plan_hash", "model_hash", "parameters_hash", "nonce"):
            value = getattr(self, name)
            if not isinstance(value, bytes) or len(value) != HASH_BYTES:
                raise ValidationError(f"The attempt's {name} must be {HASH_BYTES} bytes.")
        require_int("round", self.round, minimum=1, maximum=2**31)
        require_int("attempt", self.attempt, minimum=1, maximum=2**31)

    @classmethod
    def of(
        cls,
        parameters: SecureAggregationParameters,
        layout: RingLayout,
        *,
        plan_hash: bytes,
        model_hash: bytes,
        round: int,  # noqa: A002 - the word of the protocol
        attempt: int,
        nonce: bytes,
    ) -> AttemptContext:
        """Return the context of an attempt under these parameters and this layout."""
        return cls(
            plan_hash=plan_hash,
            model_hash=model_hash,
            parameters_hash=parameters_hash(parameters, layout),
            round=round,
            attempt=attempt,
            nonce=nonce,
        )

    def canonical(self) -> bytes:
        """Return the one encoding of this context (136 bytes)."""
        return self._encoded

    def digest(self) -> bytes:
        """Return the SHA-256 that keys, associated data and signatures are bound to."""
        return self._digest

    @cached_property
    def _encoded(self) -> bytes:
        """The canonical bytes, made once: a large cohort's adverts are each compared with them."""
        out = Writer().raw(self.plan_hash, HASH_BYTES).raw(self.model_hash, HASH_BYTES)
        out.raw(self.parameters_hash, HASH_BYTES).u32(self.round).u32(self.attempt)
        return out.raw(self.nonce, HASH_BYTES).finish()

    @cached_property
    def _digest(self) -> bytes:
        """The digest of the canonical bytes."""
        return hashlib.sha256(b"fedward attempt v1" + self._encoded).digest()


def parameters_hash(parameters: SecureAggregationParameters, layout: RingLayout) -> bytes:
    """Return the SHA-256 of the parameters and the layout, length-prefixed."""
    both = Writer().blob(parameters.canonical()).blob(hashlib.sha256(layout.canonical()).digest())
    return hashlib.sha256(both.finish()).digest()
