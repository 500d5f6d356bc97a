"""Every part of a private round comes from one recipe; its noise has the stated scale and no seed."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from client import private_trainer
from client.private_trainer import PrivateRecipe, PrivateTrainer, WeightAverage
from client.sampling import Unit
from common.errors import ModelError, PlanError
from common.host import ModelHost
from common.private_plan import round_mechanism
from common.records import Example

CPU = torch.device("cpu")
PRIVATE = {"privacy__q": 0.5, "privacy__steps": 6, "privacy__noise_multiplier": 1.3, "privacy__clip": 0.7}


@pytest.fixture(scope="module")
def plan(make_plan):
    return make_plan(**PRIVATE)


@pytest.fixture(scope="module")
def host(plan):
    return ModelHost.build(plan, device="cpu")


@pytest.fixture(scope="module")
def units(plan, host, make_notes):
    return recipe_of(plan).units(host.encoding.examples(make_notes(12)))


def recipe_of(plan, public_units=40):
    return PrivateRecipe.of(plan, public_units=public_units, device=CPU)


def silent_unit(number):
    """A unit without a labelled word: its loss, and so its gradient, is zero."""
    window = Example(
        note_id=f"n{number}",
        unit_id=f"n{number}",
        input_ids=np.array([2, 8, 9, 3], np.int32),
        labels=np.full(4, -100, np.int64),
        words=np.full(4, -1, np.int32),
    )
    return Unit(unit_id=f"n{number}", windows=(window,))


@pytest.mark.parametrize("drawn", [(), tuple(silent_unit(i) for i in range(3))], ids=["empty", "unlabelled"])
def test_the_noise_of_a_step_has_the_stated_scale(plan, host, drawn):
    trainer = PrivateTrainer(host.model.train(), recipe_of(plan), pad_id=0)
    gradients = trainer.noised_gradients(drawn)
    values = torch.cat([gradient.flatten() for gradient in gradients.values()]).numpy()
    # sigma C (1 + tau) / (q N), with N the public number.
    std = 1.3 * 0.7 * (1 + trainer.recipe.engine.tau) / (0.5 * 40)
    assert stats.kstest(values[:20_000], "norm", args=(0.0, std)).pvalue > 1e-5
    assert values.std() == pytest.approx(std, rel=5 / np.sqrt(2 * values.size))


def test_equal_seeds_give_different_noise(plan, host, units):
    start = host.read()
    ends = []
    for _ in range(2):
        torch.manual_seed(plan.seed)
        np.random.seed(plan.seed)
        host.write(start)
        PrivateTrainer(host.model, recipe_of(plan), pad_id=0).train(units, server_round=1)
        ends.append(host.read())
    host.write(start)
    assert np.mean(ends[0] != ends[1]) > 0.99


def test_what_a_round_does_is_what_it_is_charged_for(plan, host, units, monkeypatch):
    seen, drawn = [], []
    monkeypatch.setattr(
        private_trainer, "noised_mean", lambda clipped, **how: seen.append(how) or dict(clipped.gradients)
    )
    sampler = private_trainer.PoissonSampler

    def record(units, *, sampling_rate, generator):
        drawn.append((len(units), sampling_rate))
        return sampler(units, sampling_rate=sampling_rate, generator=generator)

    monkeypatch.setattr(private_trainer, "PoissonSampler", record)
    recipe = recipe_of(plan)
    start = host.read()
    PrivateTrainer(host.model, recipe, pad_id=0).train(units, server_round=2)
    host.write(start)
    (charged,) = recipe.charged
    assert charged == round_mechanism(plan)
    assert drawn == [(12, charged.q)]
    assert len(seen) == charged.steps == 3
    assert {how["noise_multiplier"] for how in seen} == {charged.noise_multiplier}
    assert {how["sensitivity"] for how in seen} == {recipe.engine.sensitivity()}
    assert recipe.engine.sensitivity() >= plan.privacy.clip


@pytest.mark.parametrize("actual", [0, 1, 12])
def test_the_denominator_is_public(plan, host, units, actual, monkeypatch):
    seen = []
    monkeypatch.setattr(
        private_trainer,
        "noised_mean",
        lambda clipped, **how: seen.append(how["denominator"]) or dict(clipped.gradients),
    )
    start = host.read()
    PrivateTrainer(host.model, recipe_of(plan, public_units=1000), pad_id=0).train(
        units[:actual], server_round=1
    )
    host.write(start)
    assert set(seen) == {0.5 * 1000}


def test_the_mean_gradient_is_the_clipped_sum_over_the_public_number(plan, host, units):
    quiet = dataclasses.replace(recipe_of(plan).mechanism, noise_multiplier=1e-6)
    recipe = dataclasses.replace(recipe_of(plan), mechanism=quiet)
    gradients = PrivateTrainer(host.model.train(), recipe, pad_id=0).noised_gradients(units)
    norm = torch.sqrt(sum(gradient.square().sum() for gradient in gradients.values()))
    # Twelve units of norm below 0.7 each; a mean over the units that are there would be about 1/12 of this.
    assert 0 < norm <= 12 * 0.7 / (0.5 * 40) * 1.001


def test_a_round_without_records_still_moves_by_noise(plan, host):
    start = host.read()
    PrivateTrainer(host.model, recipe_of(plan), pad_id=0).train((), server_round=1)
    moved = host.read()
    host.write(start)
    assert np.mean(moved != start) > 0.9


@pytest.mark.parametrize("trained", ["all", "layers", "biases"])
@pytest.mark.parametrize("engine", ["bookkeeping", "hooks", "ghost"])
def test_a_round_changes_what_the_plan_names_and_not_a_bit_of_the_rest(
    make_plan, host, units, trained, engine
):
    plan = make_plan(**PRIVATE, privacy__trained=trained, privacy__engine=engine)
    before = {name: p.detach().clone() for name, p in host.model.named_parameters()}
    start = host.read()
    PrivateTrainer(host.model, recipe_of(plan), pad_id=0).train(units, server_round=1)
    changed = {name for name, p in host.model.named_parameters() if not torch.equal(p, before[name])}
    host.write(start)
    expected = {
        "all": set(before),
        "layers": {name for name in before if "embeddings" not in name},
        "biases": {
            name
            for name, p in before.items()
            if "classifier" in name or (p.ndim == 1 and "embeddings" not in name)
        },
    }[trained]
    assert changed == expected
    assert all(p.requires_grad for p in host.model.parameters())


def test_the_norm_that_is_clipped_is_of_what_is_trained(make_plan, host, units):
    """Clipped over all weights and released in part, a unit would count for less than the noise is made for."""
    plan = make_plan(**PRIVATE, privacy__trained="biases", privacy__clipping="auto")
    quiet = dataclasses.replace(recipe_of(plan).mechanism, noise_multiplier=1e-6)
    recipe = dataclasses.replace(recipe_of(plan), mechanism=quiet)
    gradients = PrivateTrainer(host.model.train(), recipe, pad_id=0).noised_gradients(units[:1])
    norm = torch.sqrt(sum(gradient.square().sum() for gradient in gradients.values()))
    assert norm == pytest.approx(0.7 / (0.5 * 40), rel=0.1)


def test_a_model_that_trains_nothing_of_the_kind_is_refused(make_plan, make_notes):
    plan = make_plan(**PRIVATE, privacy__trained="biases")
    host = ModelHost.build(plan, device="cpu")
    for name, parameter in host.model.named_parameters():
        parameter.requires_grad_("word_embeddings" in name)
    with pytest.raises(ModelError, match="privacy.trained is 'biases'"):
        PrivateTrainer(host.model, recipe_of(plan), pad_id=0)


def test_plain_descent_sends_the_noised_gradients_themselves(make_plan, host, units, monkeypatch):
    plan = make_plan(
        **{**PRIVATE, "privacy__steps": 2, "privacy__optimizer": "sgd"},
        training__learning_rate=0.5,
        training__warmup_fraction=0.0,
        training__weight_decay=0.0,
    )
    trainer = PrivateTrainer(host.model, recipe_of(plan), pad_id=0)
    taken = {}
    real = trainer.noised_gradients
    monkeypatch.setattr(trainer, "noised_gradients", lambda drawn: taken.update(real(drawn)) or taken)
    start = host.read()
    trainer.train(units, server_round=1)
    moved = host.read()
    host.write(start)
    rate = 0.5 * private_trainer.schedule(0, 2, plan.training)
    expected = torch.cat([taken[name].flatten() for name in trainer.trained]).numpy() * -rate
    assert np.allclose(moved - start, expected, atol=1e-6)


def test_the_schedule_goes_on_from_round_to_round(plan, host, monkeypatch):
    rates = []
    monkeypatch.setattr(private_trainer, "set_rates", lambda optimizer, factor: rates.append(factor))
    start = host.read()
    for server_round in (1, 2):
        PrivateTrainer(host.model, recipe_of(plan), pad_id=0).train((), server_round=server_round)
    host.write(start)
    expected = [private_trainer.schedule(step, 6, plan.training) for step in range(6)]
    assert rates == expected


def test_the_average_is_the_corrected_exponential_one():
    weight = nn.Parameter(torch.zeros(2))
    average = WeightAverage([weight], 0.5)
    for value in (1.0, 3.0):
        with torch.no_grad():
            weight.fill_(value)
        average.add()
    average.install()
    assert weight.tolist() == pytest.approx([(0.25 * 1 + 0.5 * 3) / 0.75] * 2)


def test_no_averaging_keeps_the_last_weights():
    weight = nn.Parameter(torch.ones(2))
    average = WeightAverage([weight], 0.0)
    average.add()
    average.install()
    assert weight.tolist() == [1.0, 1.0]


def test_the_windows_of_one_unit_are_one_contribution(make_plan, make_notes, host):
    plan = make_plan(**PRIVATE, privacy__unit="patient", privacy__max_windows_per_unit=3)
    notes = [
        dataclasses.replace(note, patient_id=patient)
        for note, patient in zip(make_notes(10), itertools.cycle("ab"), strict=False)
    ]
    units = recipe_of(plan).units(host.encoding.examples(notes, unit="patient"))
    assert [(unit.unit_id, len(unit.windows)) for unit in units] == [("a", 3), ("b", 3)]


class _Normalised(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.norm = model, nn.BatchNorm1d(4)


def test_batch_normalisation_is_refused_before_any_training(plan, host):
    trainer = PrivateTrainer(_Normalised(host.model), recipe_of(plan), pad_id=0)
    with pytest.raises(ModelError, match="normalises over the batch"):
        trainer.check()


def test_a_model_that_can_be_clipped_passes_and_is_left_as_it_was(plan, host):
    start = host.read()
    host.model.eval()
    PrivateTrainer(host.model, recipe_of(plan), pad_id=0).check()
    assert not host.model.training
    assert np.array_equal(host.read(), start)
    assert all(parameter.grad is None for parameter in host.model.parameters())


def test_a_plan_without_privacy_has_no_recipe(make_plan):
    with pytest.raises(PlanError, match=r"no \[privacy\] section"):
        recipe_of(make_plan())
