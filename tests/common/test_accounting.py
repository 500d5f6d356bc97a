"""The accountant against closed forms and against two libraries of other authors."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

import common.accounting as accounting
from common.accounting import (
    FILTER_ORDERS,
    Epsilon,
    Gaussian,
    Mechanism,
    PoissonSubsampledGaussian,
    RDPFilter,
    analytic_gaussian_epsilon,
    calibrate_noise_multiplier,
    compose_across_sites,
    mechanism_from_dict,
    plan_epsilon,
    rdp,
    rdp_epsilon,
)
from common.errors import ValidationError

DELTA = 1e-5
PLANS = [(0.2, 1.5, 60), (0.2, 4.0, 200), (0.05, 0.8, 500), (0.5, 2.0, 60), (0.9, 1.0, 10), (0.2, 30.0, 60)]


def steps_of(q: float, noise: float, steps: int) -> PoissonSubsampledGaussian:
    return PoissonSubsampledGaussian(q=q, noise_multiplier=noise, steps=steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class Laplace(Mechanism):
    kind: ClassVar[str] = "laplace"


@dataclass(frozen=True, kw_only=True, slots=True)
class LessNoisyThanItSays(PoissonSubsampledGaussian):
    kind: ClassVar[str] = "subclass"


@pytest.mark.parametrize("noise", [0.3, 1.0, 2.5, 40.0])
@pytest.mark.parametrize("order", [2, 7, 64])
def test_rdp_of_a_gaussian_is_alpha_over_two_sigma_squared(noise: float, order: int) -> None:
    assert rdp([Gaussian(noise_multiplier=noise)], [order])[0] == pytest.approx(order / (2 * noise**2))


@pytest.mark.parametrize(("q", "noise"), [(0.1, 1.0), (0.5, 2.0), (0.01, 0.6)])
def test_rdp_of_order_two_has_a_closed_form(q: float, noise: float) -> None:
    # E_N[(M/N)^2] = 1 + q^2 (e^(1/sigma^2) - 1).
    expected = math.log1p(q**2 * math.expm1(1 / noise**2))
    assert rdp([steps_of(q, noise, 3)], [2])[0] == pytest.approx(3 * expected, rel=1e-10)


@pytest.mark.parametrize(("q", "noise", "steps"), PLANS)
def test_rdp_agrees_with_dp_accounting(q: float, noise: float, steps: int) -> None:
    orders = [2, 3, 8, 32, 64]
    theirs = RdpAccountant(orders)
    theirs.compose(SelfComposedDpEvent(PoissonSampledDpEvent(q, GaussianDpEvent(noise)), steps))
    np.testing.assert_allclose(rdp([steps_of(q, noise, steps)], orders), theirs.rdp, rtol=1e-9)
    # Their accountant also says what the conversion gives, over our orders.
    ours = float(np.min(rdp([steps_of(q, noise, steps)], orders) + accounting._conversion(orders, DELTA)))
    assert max(ours, 0.0) == pytest.approx(theirs.get_epsilon(DELTA), rel=1e-9)


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0, 20.0])
def test_analytic_gaussian_solves_balle_and_wang(noise: float) -> None:
    epsilon = analytic_gaussian_epsilon(noise, delta=DELTA)
    left = norm.cdf(1 / (2 * noise) - epsilon * noise)
    right = math.exp(epsilon) * norm.cdf(-1 / (2 * noise) - epsilon * noise)
    assert left - right == pytest.approx(DELTA, rel=1e-6)


def test_gaussians_compose_to_one_gaussian() -> None:
    nine = plan_epsilon([Gaussian(noise_multiplier=3.0)] * 9, delta=DELTA, unit="patient")
    assert nine.method == "analytic-gaussian"
    assert nine.epsilon == pytest.approx(analytic_gaussian_epsilon(1.0, delta=DELTA), rel=1e-9)
    assert nine.epsilon == pytest.approx(
        4.3772, abs=1e-3
    )  # dp_accounting 0.6.0, get_epsilon_gaussian(1, 1e-5).


def test_enough_noise_for_delta_alone_costs_no_epsilon() -> None:
    assert analytic_gaussian_epsilon(1e5, delta=DELTA) == 0.0


@pytest.mark.parametrize(("q", "noise", "steps"), PLANS)
def test_prv_is_an_upper_bound_within_a_hundredth_of_pld(q: float, noise: float, steps: int) -> None:
    ours = plan_epsilon([steps_of(q, noise, steps)], delta=DELTA, unit="record")
    logging.disable(logging.WARNING)
    low, high = (
        privacy_loss_distribution.from_gaussian_mechanism(
            noise,
            sampling_prob=q,
            value_discretization_interval=1e-3,
            pessimistic_estimate=pessimistic,
            use_connect_dots=pessimistic,
        )
        .self_compose(steps)
        .get_epsilon_for_delta(DELTA)
        for pessimistic in (False, True)
    )
    logging.disable(logging.NOTSET)
    assert ours.method == "prv"
    assert low <= ours.epsilon <= high + 0.0201
    assert ours.epsilon <= rdp_epsilon([steps_of(q, noise, steps)], delta=DELTA) + 0.01


@pytest.mark.parametrize(("q", "noise", "steps"), [(0.2, 1.5, 60), (0.2, 30.0, 60)])
def test_both_directions_of_the_relation_are_composed(q: float, noise: float, steps: int) -> None:
    from common.privacy_loss import SubsampledGaussianPRV, _direction

    part = [steps_of(q, noise, steps)]
    add, remove = (_direction(part, delta=DELTA, removed=removed) for removed in (False, True))
    assert plan_epsilon(part, delta=DELTA, unit="record").epsilon == max(add, remove)
    # The loss of either direction, against a sample of its own definition.
    rng = np.random.default_rng(3)
    inside = rng.random(40_000) < q
    for removed in (False, True):
        x = rng.normal(size=40_000) * noise + (inside if removed else 0.0)
        loss = np.log1p(q * np.expm1((2 * x - 1) / (2 * noise**2))) * (1 if removed else -1)
        prv = SubsampledGaussianPRV(q=q, noise_multiplier=noise, removed=removed)
        for t in np.quantile(loss, [0.1, 0.5, 0.9]):
            assert prv.cdf(t) == pytest.approx(np.mean(loss <= t), abs=0.01)


def test_the_worse_direction_counts_whichever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from common import privacy_loss

    part = [steps_of(0.2, 1.5, 1)]
    for worse in (True, False):
        monkeypatch.setattr(
            privacy_loss,
            "_direction",
            lambda parts, *, delta, removed, worse=worse: 5.0 if removed is worse else 1.0,
        )
        assert privacy_loss.prv_epsilon(part, delta=DELTA) == 5.0


def test_different_mechanisms_compose() -> None:
    parts: list[Mechanism] = [steps_of(0.2, 2.0, 40), steps_of(0.1, 1.0, 20), Gaussian(noise_multiplier=8.0)]
    ours = plan_epsilon(parts, delta=DELTA, unit="record").epsilon
    pld = privacy_loss_distribution.from_gaussian_mechanism(8.0, value_discretization_interval=1e-3)
    for q, noise, steps in ((0.2, 2.0, 40), (0.1, 1.0, 20)):
        one = privacy_loss_distribution.from_gaussian_mechanism(
            noise, sampling_prob=q, value_discretization_interval=1e-3
        )
        pld = pld.compose(one.self_compose(steps))
    assert ours == pytest.approx(pld.get_epsilon_for_delta(DELTA), abs=0.02)
    assert ours > plan_epsilon(parts[:2], delta=DELTA, unit="record").epsilon


def test_hopeless_noise_is_bounded_by_rdp_and_says_so() -> None:
    hopeless = plan_epsilon([steps_of(0.5, 0.05, 100)], delta=DELTA, unit="record")
    assert hopeless.method == "rdp"
    assert hopeless.epsilon > 60


@pytest.mark.parametrize("stranger", [Laplace(), LessNoisyThanItSays(q=0.1, noise_multiplier=1.0, steps=1)])
def test_an_unknown_mechanism_is_never_free(stranger: Mechanism) -> None:
    known = steps_of(0.1, 1.0, 1)
    for use in (
        lambda: plan_epsilon([known, stranger], delta=DELTA, unit="record"),
        lambda: rdp([known, stranger], [2]),
        lambda: RDPFilter(epsilon=8, delta=DELTA).admits([], [stranger]),
    ):
        with pytest.raises(ValidationError, match="unknown to the accountant"):
            use()


def test_a_plan_without_mechanisms_has_no_epsilon() -> None:
    with pytest.raises(ValidationError, match="no mechanism"):
        plan_epsilon([], delta=DELTA, unit="record")


@pytest.mark.parametrize(
    "fields",
    [
        {"q": 0.0},
        {"q": 1.1},
        {"q": math.nan},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.inf},
        {"steps": 0},
        {"steps": True},
    ],
)
def test_mechanisms_check_their_ranges(fields: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        PoissonSubsampledGaussian(**{"q": 0.1, "noise_multiplier": 1.0, "steps": 1} | fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("one", [steps_of(0.2, 1.1, 7), Gaussian(noise_multiplier=0.7)])
def test_mechanisms_survive_json_and_nothing_else_does(one: Mechanism) -> None:
    assert mechanism_from_dict(one.to_dict()) == one
    for broken in (
        one.to_dict() | {"mechanism": "none"},
        one.to_dict() | {"extra": 1},
        {"mechanism": one.kind},
    ):
        with pytest.raises(ValidationError):
            mechanism_from_dict(broken)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_delta_out_of_range(delta: float) -> None:
    with pytest.raises(ValidationError, match="delta"):
        plan_epsilon([steps_of(0.2, 1.0, 1)], delta=delta, unit="record")
    with pytest.raises(ValidationError, match="delta"):
        RDPFilter(epsilon=1.0, delta=delta)


def test_epsilon_says_everything_it_means_nothing_without() -> None:
    one = Epsilon(epsilon=2.5, delta=DELTA, unit="patient", method="prv")
    assert str(one) == "epsilon 2.50 at delta 1e-05 (add-or-remove-one patient, prv)"
    assert one.to_dict() == {
        "epsilon": 2.5,
        "delta": DELTA,
        "unit": "patient",
        "neighbouring": "add-or-remove-one patient",
        "method": "prv",
    }
    with pytest.raises(ValidationError, match="unit"):
        Epsilon(epsilon=1.0, delta=DELTA, unit="sentence", method="prv")


def test_sites_add_epsilons_and_deltas() -> None:
    sites = [Epsilon(epsilon=e, delta=DELTA, unit="patient", method="prv") for e in (1.0, 2.0, 4.5)]
    total = compose_across_sites(sites)
    assert (total.epsilon, total.unit) == (7.5, "patient")
    assert total.delta == pytest.approx(3e-5)
    record = Epsilon(epsilon=1.0, delta=DELTA, unit="record", method="prv")
    with pytest.raises(ValidationError, match="do not add"):
        compose_across_sites([*sites, record])
    with pytest.raises(ValidationError, match="do not add"):
        compose_across_sites([])


class TestFilter:
    limit = RDPFilter(epsilon=4.0, delta=DELTA)

    def test_stops_exactly_where_the_sum_passes_the_limit(self) -> None:
        charged: list[Mechanism] = []
        one = steps_of(0.2, 2.0, 5)
        while self.limit.admits(charged, [one]):
            charged.append(one)
        assert len(charged) > 3
        assert self.limit.spent(charged) <= 4.0 < self.limit.spent([*charged, one])

    def test_what_it_admits_costs_no_more_than_its_limit(self) -> None:
        # Plans fixed in advance are a special case of adaptive ones: PRV bounds them from above as well.
        charged: list[Mechanism] = [steps_of(0.2, 2.0, 20), steps_of(0.05, 0.9, 30)]
        exact = plan_epsilon(charged, delta=DELTA, unit="record").epsilon
        assert exact < self.limit.spent(charged)

    def test_orders_share_delta(self) -> None:
        # Choosing the best order from the outputs without paying for it would make this smaller.
        one = [Gaussian(noise_multiplier=1.0)]
        shares = [
            RDPFilter(epsilon=4.0, delta=DELTA / 6, orders=(order,)).spent(one) for order in FILTER_ORDERS
        ]
        assert len(FILTER_ORDERS) == 6
        assert self.limit.spent(one) == pytest.approx(min(shares))

    @given(
        noises=st.lists(st.floats(0.4, 20.0), min_size=1, max_size=6),
        cut=st.integers(0, 6),
        q=st.floats(0.01, 1.0),
    )
    @settings(max_examples=40, deadline=None)
    def test_spending_only_grows_and_does_not_depend_on_how_it_is_cut(
        self, noises: list[float], cut: int, q: float
    ) -> None:
        jobs = [steps_of(q, noise, 3) for noise in noises]
        assert self.limit.spent(jobs[:cut]) <= self.limit.spent(jobs) + 1e-12
        singles = [steps_of(q, noise, 1) for noise in noises for _ in range(3)]
        assert self.limit.spent(singles) == pytest.approx(self.limit.spent(jobs), rel=1e-9, abs=1e-9)

    def test_nothing_costs_nothing(self) -> None:
        assert self.limit.spent([]) == 0.0

    @pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf])
    def test_limit_out_of_range(self, epsilon: float) -> None:
        with pytest.raises(ValidationError, match="max_epsilon"):
            RDPFilter(epsilon=epsilon, delta=DELTA)


class TestCalibration:
    def test_meets_its_target_with_the_reserve_and_not_by_much(self) -> None:
        noise = calibrate_noise_multiplier(
            target_epsilon=8.0, delta=DELTA, q=0.2, steps=60, rounds=6, reserve_rounds=2
        )
        cost = plan_epsilon([steps_of(0.2, noise, 80)], delta=DELTA, unit="record").epsilon
        assert 7.98 <= cost <= 8.0
        without = calibrate_noise_multiplier(target_epsilon=8.0, delta=DELTA, q=0.2, steps=60, rounds=6)
        assert without < noise

    def test_agrees_with_the_closed_form(self) -> None:
        noise = calibrate_noise_multiplier(target_epsilon=4.3772, delta=DELTA, q=1.0, steps=1, rounds=1)
        assert noise == pytest.approx(1.0, rel=2e-3)

    def test_pays_for_the_other_releases(self) -> None:
        count = Gaussian(noise_multiplier=2.0)
        noise = calibrate_noise_multiplier(
            target_epsilon=4.0, delta=DELTA, q=1.0, steps=10, rounds=10, others=[count]
        )
        spent = plan_epsilon([steps_of(1.0, noise, 10), count], delta=DELTA, unit="record").epsilon
        assert 3.98 <= spent <= 4.0

    def test_a_target_that_no_noise_can_meet(self) -> None:
        with pytest.raises(ValidationError, match=r"target_epsilon.*no noise can meet it"):
            calibrate_noise_multiplier(
                target_epsilon=1.0,
                delta=DELTA,
                q=1.0,
                steps=10,
                rounds=10,
                others=[Gaussian(noise_multiplier=1.0)],
            )

    @pytest.mark.parametrize(
        ("field", "value"), [("target_epsilon", 0.0), ("delta", 1.0), ("q", 0.0), ("rounds", 0), ("steps", 0)]
    )
    def test_out_of_range(self, field: str, value: float) -> None:
        values = {"target_epsilon": 1.0, "delta": DELTA, "q": 0.1, "steps": 10, "rounds": 10} | {field: value}
        with pytest.raises(ValidationError, match=field):
            calibrate_noise_multiplier(**values)  # type: ignore[arg-type]


def test_ledger_side_needs_neither_torch_nor_opacus() -> None:
    import subprocess
    import sys

    code = (
        "import sys, client.ledger, client.policy, client.approvals, common.audit_log;"
        "sys.exit(bool({'torch', 'opacus', 'flwr'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
