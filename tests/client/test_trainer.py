"""Local training is deterministic, follows one schedule over all rounds, and is pulled back by FedProx."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from client.trainer import LocalTrainer
from common.host import ModelHost
from common.plan import Training
from common.training import FitSession, parameter_groups, pull_back, schedule, token_loss


@pytest.fixture
def trained(make_plan, make_notes):
    """A function that trains one round from the plan's initial weights and returns host, result and rates."""

    def train(*, server_round=1, site="site-1", notes=20, start=None, **changes):
        plan = make_plan(**changes)
        host = ModelHost.build(plan, device="cpu")
        if start is not None:
            host.write(start)
        trainer = LocalTrainer(host.model, plan, pad_id=host.encoding.pad_id)
        examples = host.encoding.examples(make_notes(notes))
        result = trainer.train(examples, site=site, server_round=server_round)
        return host.read(), result

    return train


def rates(make_plan, make_notes, monkeypatch, server_round, **changes):
    """Return the learning rate of every step of one round."""
    plan = make_plan(**changes)
    host = ModelHost.build(plan, device="cpu")
    seen: list[float] = []
    original = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        seen.append(self.param_groups[0]["lr"] / self.param_groups[0]["base_lr"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    trainer = LocalTrainer(host.model, plan, pad_id=0)
    trainer.train(host.encoding.examples(make_notes(20)), site="s", server_round=server_round)
    monkeypatch.setattr(torch.optim.AdamW, "step", original)
    return seen


def test_the_loss_is_over_first_pieces_alone():
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, -100, 2], [-100, -100, 0]])
    expected = sum(-torch.log_softmax(logits[b, t], -1)[labels[b, t]] for b, t in [(0, 0), (0, 2), (1, 2)])
    assert torch.allclose(token_loss(logits, labels), expected)
    assert token_loss(logits, torch.full((2, 3), -100)) == 0


def test_the_loss_is_float32_under_autocast():
    logits = torch.randn(1, 2, 3).bfloat16()
    loss = token_loss(logits, torch.tensor([[0, 1]]))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, F.cross_entropy(logits[0].float(), torch.tensor([0, 1]), reduction="sum"))


def test_the_same_seed_gives_the_same_bits(trained):
    one, two = trained(), trained()
    assert one[0].tobytes() == two[0].tobytes()
    assert one[1] == two[1]


@pytest.mark.parametrize("change", [{"seed": 8}, {"site": "site-2"}, {"server_round": 2}], ids=str)
def test_seed_site_and_round_each_change_the_order(trained, change):
    start = np.full(trained()[0].shape, 0.02, np.float32)
    assert trained(start=start)[0].tobytes() != trained(start=start, **change)[0].tobytes()


def test_other_randomness_of_the_process_neither_matters_nor_is_disturbed(trained):
    torch.manual_seed(1)
    one = trained()[0]
    torch.manual_seed(2)
    torch.rand(5)
    before = torch.get_rng_state()
    two = trained()[0]
    assert one.tobytes() == two.tobytes()
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_counted(trained):
    _, result = trained(notes=20, federation__local_epochs=2)
    assert result.num_examples == 40
    assert result.steps == 2 * 3
    assert result.num_tokens > result.num_examples
    assert result.loss_sum > 0


def test_local_steps_stop_in_the_middle_of_an_epoch(trained):
    _, result = trained(notes=20, federation__local_epochs=0, federation__local_steps=4)
    assert result.steps == 4
    assert 20 < result.num_examples <= 28


def test_training_lowers_the_loss(trained):
    _, one = trained(federation__rounds=1)
    _, many = trained(federation__rounds=1, federation__local_epochs=8, training__learning_rate=1e-2)
    assert many.loss_sum / many.num_tokens < one.loss_sum / one.num_tokens


@pytest.mark.parametrize(
    "changes", [{}, {"federation__local_epochs": 0, "federation__local_steps": 2}], ids=str
)
def test_the_schedule_is_continuous_across_rounds(make_plan, make_notes, monkeypatch, changes):
    rounds = 3
    found = [
        rate
        for r in range(1, rounds + 1)
        for rate in rates(make_plan, make_notes, monkeypatch, r, federation__rounds=rounds, **changes)
    ]
    training = make_plan().training
    assert found == pytest.approx([schedule(i, len(found), training) for i in range(len(found))])
    assert max(abs(a - b) for a, b in itertools.pairwise(found)) <= 0.5 + 1e-9


@pytest.mark.parametrize("total", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
def test_the_schedule_warms_up_and_decays_and_never_stops_before_the_end(total, warmup):
    training = dataclasses.replace(Training(), warmup_fraction=warmup)
    factors = [schedule(i, total, training) for i in range(total)]
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert all(0 < factor <= 1 for factor in factors)


@pytest.mark.parametrize("total", [1, 5])
def test_without_a_warmup_the_first_step_has_the_whole_rate(total):
    assert schedule(0, total, dataclasses.replace(Training(), warmup_fraction=0.0)) == 1.0


def test_fedprox_pulls_towards_the_start(trained):
    options = {"federation__local_epochs": 4, "training__max_grad_norm": 1e6}
    start = trained(federation__local_epochs=0, federation__local_steps=1, training__learning_rate=1e-12)[0]
    distances = [
        float(np.linalg.norm(trained(start=start, training__fedprox_mu=mu, **options)[0] - start))
        for mu in (0.0, 1.0, 30.0)
    ]
    assert distances[0] > distances[1] > distances[2] > 0


def test_fedprox_adds_mu_times_the_distance(make_plan):
    plan = make_plan(training__fedprox_mu=0.5)
    host = ModelHost.build(plan, device="cpu")
    session = FitSession(host.model, plan.training, pad_id=0, total_steps=1)
    with torch.no_grad():
        for parameter in session.trained:
            parameter.add_(0.25)
            parameter.grad = torch.ones_like(parameter)
    pull_back(session.trained, session.anchor, plan.training.fedprox_mu)
    for parameter in session.trained:
        torch.testing.assert_close(parameter.grad, torch.full_like(parameter, 1.125))


def test_groups_cover_every_trained_parameter_once(make_plan):
    plan = make_plan(training__head_learning_rate=0.01, model__trained_layers=1)
    model = ModelHost.build(plan, device="cpu").model
    groups = parameter_groups(model, plan.training)
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    for group in groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (plan.training.weight_decay if parameter.ndim > 1 else 0.0)
    head = {id(p) for name, p in model.named_parameters() if "classifier" in name}
    assert {id(p) for group in groups if group["lr"] == 0.01 for p in group["params"]} == head


@pytest.mark.parametrize(
    "fields",
    [{"model__lora_rank": 2}, {"model__freeze_embeddings": True}, {"model__trained_layers": 1}],
    ids=str,
)
def test_only_what_the_plan_trains_changes(make_plan, make_notes, fields):
    plan = make_plan(**fields)
    host = ModelHost.build(plan, device="cpu")
    before = {name: p.detach().clone() for name, p in host.model.named_parameters()}
    trainer = LocalTrainer(host.model, plan, pad_id=0)
    trainer.train(host.encoding.examples(make_notes(20)), site="s", server_round=1)
    changed = {name for name, p in host.model.named_parameters() if not torch.equal(p, before[name])}
    asked = {name for name, p in host.model.named_parameters() if p.requires_grad}
    assert changed
    # A random key bias has no gradient: attention does not depend on it.
    assert {name for name in asked if "key.bias" not in name} <= changed <= asked


def test_gradients_are_clipped_to_the_plans_norm(make_plan, make_notes, monkeypatch):
    plan = make_plan(training__max_grad_norm=1e-3)
    host = ModelHost.build(plan, device="cpu")
    norms: list[float] = []
    original = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients]))))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    LocalTrainer(host.model, plan, pad_id=0).train(
        host.encoding.examples(make_notes(8)), site="s", server_round=1
    )
    assert max(norms) <= 1e-3 * 1.001
