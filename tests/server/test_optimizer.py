"""The server optimizers follow their papers, and go on from a saved state to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import InputError, RoundError, ValidationError
from server.optimizer import (
    SERVER_OPTIMIZERS,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    ServerOptimizer,
    decay_factor,
    make_server_optimizer,
)


def vector(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_fedavg_adds_the_mean():
    assert FedAvg().step(vector(1, 2), vector(0.5, -1)).tolist() == [1.5, 1.0]
    assert FedAvg(learning_rate=0.5).step(vector(1, 2), vector(0.5, -1)).tolist() == [1.25, 1.5]


def test_fedavgm_sums_a_geometric_series():
    # With a constant change d, the velocity after t rounds is d (1 - b^t) / (1 - b).
    optimizer, weights, position = FedAvgM(learning_rate=0.5, momentum=0.75), vector(0.0), 0.0
    for t in range(1, 8):
        weights = optimizer.step(weights, vector(0.25))
        velocity = 0.25 * (1 - 0.75**t) / (1 - 0.75)
        position += 0.5 * velocity
        assert optimizer.state()["momentum"][0] == pytest.approx(velocity, rel=1e-6)
        assert weights[0] == pytest.approx(position, rel=1e-6)


@pytest.mark.parametrize("delta", [0.05, -0.3, 0.0])
def test_fedadam_moments_have_a_closed_form(delta):
    # m_t = d (1 - b1^t) and v_t = d^2 (1 - b2^t) + tau^2 b2^t for a constant change d.
    optimizer = FedAdam(learning_rate=0.1, beta1=0.5, beta2=0.9, tau=0.01)
    weights, position = vector(1.0), 1.0
    for t in range(1, 10):
        weights = optimizer.step(weights, vector(delta))
        first = delta * (1 - 0.5**t)
        second = delta**2 * (1 - 0.9**t) + 0.01**2 * 0.9**t
        position += 0.1 * first / (second**0.5 + 0.01)
        assert optimizer.state()["first_moment"][0] == pytest.approx(first, rel=1e-5)
        assert optimizer.state()["second_moment"][0] == pytest.approx(second, rel=1e-5)
        assert weights[0] == pytest.approx(position, rel=1e-5)


def test_fedyogi_second_moment_moves_by_at_most_the_squared_change():
    # From v = tau^2 = 1 with d^2 = 1/4, v falls by (1 - b2) d^2 a round until it passes d^2, then rises.
    optimizer = FedYogi(learning_rate=1.0, beta1=0.0, beta2=0.5, tau=1.0)
    weights = vector(0.0)
    expected = [0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.25]
    for second in expected:
        before = weights.copy()
        weights = optimizer.step(weights, vector(0.5))
        assert optimizer.state()["second_moment"][0] == second
        assert weights[0] - before[0] == pytest.approx(0.5 / (second**0.5 + 1.0), rel=1e-5)
    optimizer.step(weights, vector(1.0))
    assert optimizer.state()["second_moment"][0] == 0.25 + 0.5 * 1.0


@pytest.mark.parametrize("name", SERVER_OPTIMIZERS)
class TestEveryServerOptimizer:
    def make(self, name: str) -> ServerOptimizer:
        return make_server_optimizer(name, learning_rate=0.3)

    def deltas(self, count: int) -> list[np.ndarray]:
        generator = np.random.default_rng(3)
        return [generator.standard_normal(70_000).astype(np.float32) for _ in range(count)]

    def test_resumed_state_gives_the_same_weights_to_the_bit(self, name):
        first, weights = self.make(name), np.zeros(70_000, dtype=np.float32)
        deltas = self.deltas(4)
        for delta in deltas[:2]:
            weights = first.step(weights, delta)
        second = self.make(name)
        saved = {
            key: np.frombuffer(value.tobytes(), dtype=np.float32) for key, value in first.state().items()
        }
        second.load_state(saved)
        straight, resumed = weights, weights
        for delta in deltas[2:]:
            straight, resumed = first.step(straight, delta), second.step(resumed, delta)
        assert straight.tobytes() == resumed.tobytes()

    def test_in_place_step_equals_a_copying_step(self, name):
        weights, delta = self.deltas(2)
        copied = self.make(name).step(weights, delta)
        assert copied is not weights
        in_place = weights.copy()
        assert self.make(name).step(in_place, delta, out=in_place) is in_place
        assert in_place.tobytes() == copied.tobytes()

    def test_a_change_that_is_not_finite_leaves_state_and_weights(self, name):
        optimizer, weights = self.make(name), vector(1, 2)
        optimizer.step(weights, vector(1, 1))
        before = {key: value.copy() for key, value in optimizer.state().items()}
        with pytest.raises(RoundError, match="not finite"):
            optimizer.step(weights, vector(1, float("nan")))
        assert all((before[key] == value).all() for key, value in optimizer.state().items())
        assert weights.tolist() == [1, 2]

    def test_sizes_must_agree_with_the_state(self, name):
        optimizer = self.make(name)
        with pytest.raises(RoundError, match="one size"):
            optimizer.step(vector(1, 2), vector(1))

    def test_another_optimizers_state_is_refused(self, name):
        with pytest.raises(InputError, match="resume with the plan"):
            self.make(name).load_state({"no_such": vector(1)})


def test_unknown_optimizer_and_bad_settings_are_named():
    with pytest.raises(ValidationError, match="Did you mean 'fedadam'"):
        make_server_optimizer("fedadm")
    with pytest.raises(ValidationError, match="server tau"):
        make_server_optimizer("fedyogi", tau=0.0)
    with pytest.raises(ValidationError, match="server momentum"):
        make_server_optimizer("fedavgm", momentum=1.0)


def test_the_linear_decay_ends_just_above_zero_and_scales_the_step():
    factors = [decay_factor("linear", server_round, 4) for server_round in (1, 2, 3, 4)]
    assert factors == [1.0, 0.75, 0.5, 0.25]
    assert decay_factor("none", 4, 4) == 1.0
    whole, half = (make_server_optimizer("fedadam").step(vector(0), vector(1), factor=f) for f in (1.0, 0.5))
    assert half == pytest.approx(whole / 2)
