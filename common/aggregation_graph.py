"""Who shares keys with whom: everyone up to a limit, and a fixed expander above it.

Bell et al., "Secure single-server aggregation with (poly)logarithmic overhead", CCS 2020, let each site
have k neighbours instead of n - 1. Their random graph must be kept out of the server's hands. Ours is a
k-regular circulant whose second eigenvalue is computed and required to be small; what we claim about
privacy then holds for *every* placement of the sites on it, so nothing is won by choosing or grinding it.

Formal guarantees, with n sites, at most c colluding *whichever they are and wherever they sit*, t_n the
cohort's threshold, k neighbours, m = k + 1 share holders of each secret, and t its threshold:
    1. t > (m + c) / 2. A site gives one of two shares per holder and attempt, so the server never holds t
       shares of both secrets of one site, though all c colluders be among its holders.
    2. Each honest site whose sum can be opened has at least t - c honest holders that answered, itself
       perhaps among them, and is connected to them by masks that the server cannot remove. So every set
       of honest sites whose sum can be opened by itself has at least a = t - c members.
    3. At least w = t_n - c honest sites signed the one survivor set. Two disjoint vertex sets of sizes
       x and y without an edge between them satisfy x y <= mu^2 (n - x)(n - y) for mu = lambda_2 / k
       (W. H. Haemers, "Interlacing eigenvalues and graphs", 1995, Lemma 6.1; the expander mixing
       lemma). The degree is raised until this fails for x = a and y = w - a, and then for all sizes
       between. So one sum at most can be opened, over more than w - a honest sites.
    4. Only completion is random: with at most `floor(dropout_tolerance n)` dropouts that do not depend on
       the placement, the chance that some site is left with fewer than t holders, over all sites, rounds
       and attempts of the plan, is below 2^-(failure_bits + 1): the exact hypergeometric tail, summed.
On a full graph 1 to 3 hold with m = n and t = t_n, and completion needs t_n survivors, nothing else.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from common.secagg_parameters import SecureAggregationParameters

_CANDIDATES = 32
"""Offset sets tried per degree before the degree is raised."""

_MARGIN = 1.02
"""Slack on the computed eigenvalue, far above its rounding error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphDesign:
    """The graph's size and thresholds; a function of n and the parameters alone.

    Attributes:
        sites: n, the number of vertices.
        degree: k, the neighbours of each site.
        offsets: Distances on the circle at which neighbours sit; empty for the full graph.
        cohort_threshold: t_n, counted in sites.
        share_threshold: t, counted in the k + 1 holders of one secret.
        smallest_sum: Honest sites that any sum that can be opened covers at least.
        failure_log2: Base-2 logarithm of the bound on a failure to complete; -inf for the full graph.
    """

    sites: int
    degree: int
    offsets: tuple[int, ...]
    cohort_threshold: int
    share_threshold: int
    smallest_sum: int
    failure_log2: float

    @property
    def full(self) -> bool:
        """Whether everyone is everyone's neighbour."""
        return not self.offsets


class AggregationGraph:
    """A design with the sites placed on it by a public seed.

    Args:
        design: The circulant and its thresholds.
        seed: Public bytes, the hash of the advert set; spreads sites so that an outage of related sites
            does not fall into one neighbourhood.
    """

    def __init__(self, design: GraphDesign, seed: bytes) -> None:
        """Place the sites."""
        self.design = design
        self._vertex_of = _placement(design.sites, seed)
        self._site_at = np.argsort(self._vertex_of, kind="stable")

    def neighbours(self, site: int) -> tuple[int, ...]:
        """Return the neighbours' positions in increasing order, without the site itself."""
        n = self.design.sites
        if self.design.full:
            return tuple(other for other in range(n) if other != site)
        vertex = int(self._vertex_of[site])
        steps = np.array(self.design.offsets)
        vertices = np.concatenate([(vertex + steps) % n, (vertex - steps) % n])
        return tuple(np.unique(self._site_at[vertices]).tolist())

    def holders(self, site: int) -> tuple[int, ...]:
        """Return the positions that hold shares of the site's secrets, itself included, in order."""
        return tuple(sorted((*self.neighbours(site), site)))


@lru_cache(maxsize=64)
def design_graph(sites: int, parameters: SecureAggregationParameters) -> GraphDesign:
    """Return the graph for n sites under the plan's parameters.

    Raises:
        ValidationError: So few sites cannot be aggregated.
    """
    parameters.check_cohort(sites)
    if sites > parameters.full_graph_limit:
        for degree in range(_least_degree(sites, parameters), sites - 1, 2):
            if offsets := _find_expander(sites, degree, parameters):
                return _sparse_design(sites, offsets, parameters)
    threshold = parameters.cohort_threshold(sites)
    return GraphDesign(
        sites=sites,
        degree=sites - 1,
        offsets=(),
        cohort_threshold=threshold,
        share_threshold=threshold,
        smallest_sum=threshold - parameters.collusion_tolerance,
        failure_log2=-math.inf,
    )


def signatures_to_check(shown: int, needed: int, sites: int, parameters: SecureAggregationParameters) -> int:
    """Return how many of the shown confirm signatures a site must check, drawn with secret randomness.

    If fewer than `needed` of them are valid, at most needed - 1 are, and the chance that m drawn without
    replacement are all valid is C(needed - 1, m) / C(shown, m). The least m is returned for which this,
    over all sites, rounds and attempts, is below 2^-(failure_bits + 1); at m = needed it is zero. On a
    full graph all are checked.
    """
    if sites <= parameters.full_graph_limit:
        return shown
    events = sites * parameters.rounds * parameters.attempts
    for drawn in range(1, needed):
        valid, every = math.comb(needed - 1, drawn), math.comb(shown, drawn)
        if (valid * events) << (parameters.failure_bits + 1) <= every:
            return drawn
    return needed


def share_threshold(holders: int, collusion_tolerance: int) -> int:
    """Return the least threshold above (m + c) / 2 for m holders."""
    return (holders + collusion_tolerance) // 2 + 1


def _sparse_design(
    sites: int, offsets: tuple[int, ...], parameters: SecureAggregationParameters
) -> GraphDesign:
    """The design of a circulant that passed."""
    degree, c = 2 * len(offsets), parameters.collusion_tolerance
    threshold = share_threshold(degree + 1, c)
    signers = parameters.cohort_threshold(sites) - c
    failures, cases = _failures(sites, degree, parameters)
    return GraphDesign(
        sites=sites,
        degree=degree,
        offsets=offsets,
        cohort_threshold=parameters.cohort_threshold(sites),
        share_threshold=threshold,
        smallest_sum=signers - (threshold - c) + 1,
        failure_log2=math.log2(failures) - math.log2(cases) if failures else -math.inf,
    )


def _least_degree(sites: int, parameters: SecureAggregationParameters) -> int:
    """The least even degree that meets the completion bound, by bisection with exact integers."""
    low, high = 1, (sites - 1) // 2 + 1
    while low < high:
        middle = (low + high) // 2
        failures, cases = _failures(sites, 2 * middle, parameters)
        if failures << (parameters.failure_bits + 1) <= cases:
            high = middle
        else:
            low = middle + 1
    return 2 * low


def _failures(sites: int, degree: int, parameters: SecureAggregationParameters) -> tuple[int, int]:
    """The completion bound as a fraction (numerator, denominator).

    A surviving site has k neighbours drawn from the n - 1 others, D of them dropped; it fails when more
    than m - t of its holders are gone. A dropped site is one of the D itself, so its case is not worse.
    """
    dropped = int(parameters.dropout_tolerance * sites)
    holders = degree + 1
    spare = holders - share_threshold(holders, parameters.collusion_tolerance)
    if spare < 0:
        return 1, 1
    others = sites - 1
    tail = sum(
        math.comb(dropped, gone) * math.comb(others - dropped, degree - gone)
        for gone in range(spare + 1, min(dropped, degree) + 1)
    )
    return tail * sites * parameters.rounds * parameters.attempts, math.comb(others, degree)


def _find_expander(
    sites: int, degree: int, parameters: SecureAggregationParameters
) -> tuple[int, ...] | None:
    """The first pseudo-random offset set of this degree whose second eigenvalue meets guarantee 3."""
    c = parameters.collusion_tolerance
    part = share_threshold(degree + 1, c) - c
    rest = parameters.cohort_threshold(sites) - c - part
    if part < 1 or rest < part:
        # The sizes between `part` and `rest` are an empty range only if two such parts do not fit.
        return None
    allowed = part * rest / ((sites - part) * (sites - rest))
    for candidate in range(_CANDIDATES):
        offsets = _draw_offsets(sites, degree // 2, candidate)
        if _second_eigenvalue(sites, offsets) ** 2 * _MARGIN < allowed * degree**2:
            return offsets
    return None


def _draw_offsets(sites: int, count: int, candidate: int) -> tuple[int, ...]:
    """Distinct distances below n / 2, ordered by a hash: the same on every machine."""
    largest = (sites - 1) // 2

    def rank(offset: int) -> bytes:
        return hashlib.sha256(f"fedward circulant v1 {sites} {count} {candidate} {offset}".encode()).digest()

    return tuple(sorted(sorted(range(1, largest + 1), key=rank)[:count]))


def _second_eigenvalue(sites: int, offsets: tuple[int, ...]) -> float:
    """The largest absolute eigenvalue of the circulant but its degree: its first row's Fourier sum."""
    row = np.zeros(sites)
    row[list(offsets)] = 1.0
    row[[sites - offset for offset in offsets]] = 1.0
    return float(np.abs(np.fft.fft(row)[1:]).max())


def _placement(sites: int, seed: bytes) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """A permutation drawn from the seed: the vertex of each site."""
    order = sorted(range(sites), key=lambda site: hashlib.sha256(seed + site.to_bytes(4)).digest())
    vertex_of = np.empty(sites, np.int64)
    vertex_of[order] = np.arange(sites)
    return vertex_of
