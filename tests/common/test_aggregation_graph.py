"""The neighbour graph: regular, symmetric, deterministic, and with the properties its docstring claims."""

import itertools
import math

import numpy as np
import pytest

from common.aggregation_graph import AggregationGraph, design_graph, share_threshold, signatures_to_check
from common.errors import ValidationError
from common.secagg_parameters import SecureAggregationParameters

FIVE_PERCENT = {65: 3, 100: 5, 200: 10, 1000: 50}


def design(sites, **changes):
    changes.setdefault("collusion_tolerance", FIVE_PERCENT.get(sites, 1))
    return design_graph(sites, SecureAggregationParameters(**changes))


def adjacency(graph):
    n = graph.design.sites
    matrix = np.zeros((n, n))
    for site in range(n):
        matrix[site, list(graph.neighbours(site))] = 1.0
    return matrix


@pytest.mark.parametrize("sites", [3, 8, 64])
def test_up_to_the_limit_everyone_is_a_neighbour(sites):
    graph = AggregationGraph(design(sites), b"seed")
    assert graph.design.full
    assert graph.neighbours(1) == (0, *range(2, sites))
    assert graph.design.share_threshold == graph.design.cohort_threshold


def test_the_degrees_at_100_and_1000_sites():
    # At 100 sites, 46 is the least k for which k - 20 dropped neighbours leaves a threshold with 5 colluding.
    assert design(100).degree == 46
    assert 200 <= design(1000).degree <= 260


@pytest.mark.parametrize("sites", [65, 100, 201])
def test_the_graph_is_regular_and_symmetric(sites):
    matrix = adjacency(AggregationGraph(design(sites, collusion_tolerance=5), b"seed"))
    assert np.array_equal(matrix, matrix.T)
    assert not matrix.diagonal().any()
    assert set(matrix.sum(axis=0)) == {design(sites, collusion_tolerance=5).degree}


@pytest.mark.parametrize("sites", [65, 100, 200])
def test_separated_sets_cannot_both_be_large(sites):
    # Guarantee 3, with the eigenvalue recomputed from the placed graph's own adjacency matrix.
    graph, c = AggregationGraph(design(sites), b"seed"), FIVE_PERCENT[sites]
    eigenvalues = np.linalg.eigvalsh(adjacency(graph))
    mu = max(abs(eigenvalues[0]), abs(eigenvalues[-2])) / graph.design.degree
    signers = graph.design.cohort_threshold - c
    least = graph.design.share_threshold - c
    for part in range(least, signers - least + 1):
        rest = signers - part
        assert part * rest > mu**2 * (sites - part) * (sites - rest)
    assert graph.design.smallest_sum == signers - least + 1


def test_the_greedy_attack_separates_nothing():
    # An adversary that picks a connected part and drops its whole boundary is left with too few signers.
    graph = AggregationGraph(design(100), b"seed")
    matrix = adjacency(graph)
    rng = np.random.default_rng(3)
    for _ in range(200):
        part = {int(rng.integers(100))}
        while len(part) < graph.design.share_threshold - 5:
            boundary = matrix[sorted(part)].sum(axis=0)
            boundary[sorted(part)] = -1
            part.add(int(np.argmax(boundary + rng.random(100))))
        touched = set(np.flatnonzero(matrix[sorted(part)].sum(axis=0))) - part
        assert 100 - len(touched) < graph.design.cohort_threshold


@pytest.mark.parametrize("sites", [65, 100, 1000])
def test_thresholds_hold_though_all_colluders_sit_together(sites):
    found, c = design(sites), FIVE_PERCENT[sites]
    holders = found.degree + 1
    assert 2 * found.share_threshold > holders + c
    assert 2 * (found.share_threshold - 1) <= holders + c
    assert found.share_threshold == share_threshold(holders, c)


@pytest.mark.parametrize("sites", [65, 100, 200, 1000])
def test_the_completion_bound_is_the_exact_tail(sites):
    found, dropped = design(sites), int(0.2 * sites)
    spare = found.degree + 1 - found.share_threshold
    tail = math.fsum(
        math.exp(
            _log_comb(dropped, gone)
            + _log_comb(sites - 1 - dropped, found.degree - gone)
            - _log_comb(sites - 1, found.degree)
        )
        for gone in range(spare + 1, min(dropped, found.degree) + 1)
    )
    bound = tail * sites * 100 * 3
    assert bound <= 2**-41
    assert found.failure_log2 == pytest.approx(math.log2(bound) if bound else -math.inf)


def test_a_smaller_degree_would_miss_the_completion_bound():
    # At 100 sites and degree 44 the 20 dropped may leave 25 holders where 26 are needed.
    found = design(100)
    assert found.degree - 2 + 1 - 20 < share_threshold(found.degree - 1, 5)


def test_random_dropouts_complete():
    graph, rng = AggregationGraph(design(200), b"seed"), np.random.default_rng(1)
    matrix = adjacency(graph) + np.eye(200)
    for _ in range(300):
        alive = np.ones(200)
        alive[rng.choice(200, 40, replace=False)] = 0
        assert (matrix @ alive).min() >= graph.design.share_threshold


def test_more_rounds_ask_for_more_neighbours():
    few = design(1000, collusion_tolerance=50, rounds=1, attempts=1)
    many = design(1000, collusion_tolerance=50, rounds=100_000, attempts=10)
    assert few.degree < many.degree


def test_the_seed_places_the_sites_and_nothing_else():
    one, same, other = (AggregationGraph(design(100), seed) for seed in (b"a", b"a", b"b"))
    assert one.neighbours(7) == same.neighbours(7) != other.neighbours(7)
    assert one.design is other.design


def test_holders_are_the_neighbours_and_the_site():
    graph = AggregationGraph(design(100), b"seed")
    assert graph.holders(9) == tuple(sorted({*graph.neighbours(9), 9}))


def test_a_cohort_that_cannot_reach_the_threshold_is_refused():
    with pytest.raises(ValidationError, match="too small"):
        design(4, collusion_tolerance=5)


def test_where_no_sparse_graph_is_sound_the_graph_is_full():
    assert design(70, collusion_tolerance=40).full


@pytest.mark.parametrize(
    ("shown", "sites", "c"), [(100, 100, 5), (53, 100, 5), (800, 1000, 50), (526, 1000, 50)]
)
def test_checking_that_many_signatures_misses_too_few_valid_ones_with_bounded_chance(shown, sites, c):
    parameters = SecureAggregationParameters(collusion_tolerance=c)
    needed = parameters.cohort_threshold(sites)
    drawn = signatures_to_check(shown, needed, sites, parameters)
    missed = math.comb(needed - 1, drawn) / math.comb(shown, drawn)
    assert missed * sites * 300 <= 2**-41
    assert drawn <= needed


def test_all_signatures_are_checked_on_a_full_graph():
    assert signatures_to_check(40, 33, 64, SecureAggregationParameters()) == 40


def test_the_spot_check_formula_is_right_by_enumeration():
    # 6 shown, 4 of them valid, 3 drawn: C(4,3) of C(6,3) draws see only valid ones.
    draws = list(itertools.combinations(range(6), 3))
    assert sum(max(draw) < 4 for draw in draws) / len(draws) == math.comb(4, 3) / math.comb(6, 3)


def _log_comb(n, k):
    if k < 0 or k > n:
        return -math.inf
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
