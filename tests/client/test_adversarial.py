"""Adversarial training: per window, within the radius, harder than the clean text, and one clip a unit."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from client import adversarial
from client.adversarial import PlainAdversary, UnitAdversary
from client.clip_rule import ClipRule
from client.clipped_sum import token_loss
from client.clipping import ENGINES, make_engine
from client.private_trainer import PrivateRecipe, PrivateTrainer
from client.sampling import group_units, physical_batches
from client.trainer import LocalTrainer
from common.embeddings import shifted_embeddings
from common.errors import ModelError, ValidationError
from common.host import ModelHost
from common.plan_augmentation import METHODS, Adversarial

PRIVATE = {"privacy__q": 0.5, "privacy__steps": 4, "privacy__noise_multiplier": 1.0}


@pytest.fixture(scope="module")
def host(make_plan):
    return ModelHost.build(make_plan(model__dropout=0.0), device="cpu")


@pytest.fixture(scope="module")
def units(host, make_notes):
    return group_units(host.encoding.examples(make_notes(6)))


@pytest.fixture(scope="module")
def batch(units):
    (found,) = physical_batches(units, token_budget=4096)
    return found


def section(method, **fields):
    return Adversarial(**{"method": method, "radius": 0.8, "ascent_rate": 0.5, **fields})


def row(batch, number):
    alone = batch.take(torch.tensor([number]))
    length = int(alone.attention_mask.sum())
    cut = {name: getattr(alone, name)[:, :length] for name in ("input_ids", "attention_mask", "labels")}
    return dataclasses.replace(alone, **cut), length


@pytest.mark.parametrize("method", METHODS)
def test_a_windows_perturbation_does_not_depend_on_its_neighbours(host, batch, method):
    adversary = UnitAdversary(section=section(method))
    host.model.train()
    start = torch.zeros(*batch.input_ids.shape, 32)
    together = adversary.offsets(host.model, batch, start=start)
    for number in range(batch.num_windows):
        alone, length = row(batch, number)
        single = adversary.offsets(host.model, alone, start=start[number : number + 1, :length])
        for ours, theirs in zip(together, single, strict=True):
            torch.testing.assert_close(ours[number : number + 1, :length], theirs, rtol=1e-3, atol=1e-5)
            assert ours[number, length:].abs().sum() == 0


@pytest.mark.parametrize("method", METHODS)
def test_perturbations_stay_within_the_radius_and_raise_the_loss(host, batch, method):
    torch.manual_seed(0)
    host.model.train()
    offsets = UnitAdversary(section=section(method)).offsets(host.model, batch)
    assert len(offsets) == section(method).copies
    norms = torch.stack([torch.linalg.vector_norm(o, dim=(1, 2)) for o in offsets])
    assert float(norms.max()) <= 0.8 * 1.0001
    if method == "fgm":
        torch.testing.assert_close(norms[1], torch.full((batch.num_windows,), 0.8))
    clean = token_loss(host.model, batch).detach()
    perturbed = _shifted(host, batch, offsets[-1]).detach()
    assert bool((perturbed > clean).all())
    small = 0.1 * torch.randn_like(offsets[-1])
    assert float((perturbed - clean).mean()) > float((_shifted(host, batch, small).detach() - clean).mean())


def _shifted(host, batch, offsets):
    return token_loss(host.model, dataclasses.replace(batch, offsets=offsets))


def test_more_steps_of_pgd_raise_the_loss_more(host, batch):
    host.model.train()
    losses = []
    for steps in (1, 6):
        found = UnitAdversary(section=section("pgd", ascent_steps=steps, ascent_rate=0.3)).offsets(
            host.model, batch
        )
        losses.append(float(_shifted(host, batch, found[-1]).sum().detach()))
    assert losses[1] > losses[0]


@pytest.mark.parametrize("method", ["fgm", "pgd"])
def test_the_plain_gradient_is_the_mean_of_clean_and_perturbed(host, batch, method):
    host.model.train()
    host.model.zero_grad(set_to_none=True)
    chosen = section(method)
    offsets = UnitAdversary(section=chosen).offsets(host.model, batch)
    losses = [_shifted(host, batch, o).sum() for o in offsets]
    trained = [p for p in host.model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(sum(losses) / 2, trained)
    first = PlainAdversary(section=chosen).backward(
        host.model, batch.attention_mask, lambda: token_loss(host.model, batch).sum()
    )
    assert float(first) == pytest.approx(float(losses[0].detach()), rel=1e-5)
    for parameter, gradient in zip(trained, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)
    host.model.zero_grad(set_to_none=True)


def test_freelb_averages_over_its_steps(host, batch):
    host.model.train()
    host.model.zero_grad(set_to_none=True)
    chosen = section("freelb", ascent_steps=3)
    torch.manual_seed(3)
    offsets = UnitAdversary(section=chosen).offsets(host.model, batch)
    torch.manual_seed(3)
    PlainAdversary(section=chosen).backward(
        host.model, batch.attention_mask, lambda: token_loss(host.model, batch).sum()
    )
    trained = [p for p in host.model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(sum(_shifted(host, batch, o).sum() for o in offsets) / 3, trained)
    for parameter, gradient in zip(trained, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)
    host.model.zero_grad(set_to_none=True)


def clipped(host, engine, adversary, units):
    host.model.train()
    batches = physical_batches(units, token_budget=128)
    total = engine.clipped_sum(host.model, adversary.batches(host.model, batches)).gradients.values()
    return torch.cat([gradient.flatten() for gradient in total])


@pytest.mark.parametrize("method", ["fgm", "pgd"])
def test_a_unit_moves_the_sum_by_one_clip(host, units, method):
    engine = make_engine("bookkeeping", ClipRule(mode="auto", max_grad_norm=0.01))
    adversary = UnitAdversary(section=section(method))
    whole = clipped(host, engine, adversary, units)
    for i in range(len(units)):
        rest = clipped(host, engine, adversary, units[:i] + units[i + 1 :])
        assert float(torch.linalg.vector_norm(whole - rest)) <= engine.sensitivity() * 1.001


def test_norms_over_the_batch_would_void_the_guarantee(host, units, monkeypatch):
    """The weakness planted: what others add then depends on who is there, and the check at the start refuses."""
    engine = make_engine("bookkeeping", ClipRule(mode="auto", max_grad_norm=1.0))
    adversary = UnitAdversary(section=section("fgm", radius=5.0))

    def others_move():
        """How far the others' part of the sum moves when the first unit comes."""
        whole, rest = (clipped(host, engine, adversary, chosen) for chosen in (units, units[1:]))
        return float(torch.linalg.vector_norm(whole - rest - clipped(host, engine, adversary, units[:1])))

    adversary.check(host.model, pad_id=0)
    assert others_move() < 1e-3
    monkeypatch.setattr(
        adversarial,
        "_norms",
        lambda values: torch.linalg.vector_norm(values).view(1, 1, 1).expand(len(values), 1, 1),
    )
    assert others_move() > 0.05
    with pytest.raises(ModelError, match="depends on the other windows"):
        adversary.check(host.model, pad_id=0)


class Mixing(nn.Module):
    """A tagger that takes the mean over the batch off its logits."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def forward(self, **inputs):
        logits = self.inner(**inputs).logits
        return SimpleNamespace(logits=logits - 3.0 * logits.mean(dim=0, keepdim=True).square())


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_mixes_windows_is_refused(host, method):
    UnitAdversary(section=section(method)).check(host.model, pad_id=0)
    with pytest.raises(ModelError, match="depends on the other windows"):
        UnitAdversary(section=section(method)).check(Mixing(host.model), pad_id=0)


def test_a_model_without_named_embeddings_is_refused():
    with pytest.raises(ModelError, match="word embeddings"):
        UnitAdversary(section=section("fgm")).check(nn.Linear(2, 2), pad_id=0)


@pytest.mark.parametrize("method", ["fgm", "pgd"])
def test_engines_agree(host, units, method):
    adversary = UnitAdversary(section=section(method))
    sums = [
        clipped(host, make_engine(name, ClipRule(mode="flat", max_grad_norm=0.1)), adversary, units)
        for name in ENGINES
    ]
    for other in sums[1:]:
        torch.testing.assert_close(other, sums[0], rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_private_and_plain_training_take_it_from_the_plan(make_plan, make_notes, method):
    plan = make_plan(adversarial__method=method, **PRIVATE)
    host = ModelHost.build(plan, device="cpu")
    recipe = PrivateRecipe.of(plan, public_units=10, device=torch.device("cpu"))
    assert recipe.adversary.section.method == method
    trainer = PrivateTrainer(host.model, recipe, pad_id=0)
    trainer.check()
    start = host.read()
    trainer.train(recipe.units(host.encoding.examples(make_notes(6))), server_round=1)
    assert (host.read() != start).mean() > 0.9
    plain = make_plan(adversarial__method=method)
    ends = []
    for chosen in (plain, plain, make_plan()):
        host.write(start)
        LocalTrainer(host.model, chosen, pad_id=0).train(
            host.encoding.examples(make_notes(16)), site="s", server_round=1
        )
        ends.append(host.read())
    assert (ends[0] == ends[1]).all()
    assert (ends[0] != ends[2]).any()


def test_lora_models_have_word_embeddings_to_perturb(make_plan, make_notes):
    plan = make_plan(adversarial__method="fgm", model__lora_rank=2, **PRIVATE)
    host = ModelHost.build(plan, device="cpu")
    recipe = PrivateRecipe.of(plan, public_units=10, device=torch.device("cpu"))
    PrivateTrainer(host.model, recipe, pad_id=0).check()


def test_memory_must_not_depend_on_the_records(make_plan):
    fields = {
        "adversarial__method": "freelb",
        "adversarial__ascent_steps": 5,
        "training__physical_tokens": 128,
    }
    make_plan(**fields)
    with pytest.raises(ValidationError, match="at least 160"):
        make_plan(**fields, **PRIVATE)


def test_the_shift_is_gone_after_the_pass(host, batch):
    host.model.eval()
    before = token_loss(host.model, batch)
    # Layer normalisation takes a shift that is equal in all directions away again.
    with shifted_embeddings(host.model, torch.randn(*batch.input_ids.shape, 32)):
        assert not torch.allclose(token_loss(host.model, batch), before)
    assert torch.equal(token_loss(host.model, batch), before)
