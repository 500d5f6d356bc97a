"""Every engine gives the clipped sum that plain autograd gives, unit by unit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForTokenClassification

from client.clip_rule import ClipRule
from client.clipped_sum import ClippedSum, token_loss
from client.clipping import ENGINES, make_engine
from client.sampling import PhysicalBatch
from common.errors import ModelError, ValidationError

TOKENS = 6
FLAT = ClipRule(mode="flat", max_grad_norm=0.5)


def tiny_bert(**changes: object) -> BertForTokenClassification:
    torch.manual_seed(0)
    settings = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 16,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_labels": 3,
        "initializer_range": 0.2,
    }
    model = BertForTokenClassification(BertConfig(**settings | changes))
    return model.train()


def frozen_embeddings() -> nn.Module:
    model = tiny_bert()
    model.bert.embeddings.requires_grad_(False)
    return model


def frozen_lower_layers() -> nn.Module:
    model = frozen_embeddings()
    model.bert.encoder.layer[0].requires_grad_(False)
    return model


def only_biases() -> nn.Module:
    model = tiny_bert()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    return model


def lora() -> nn.Module:
    """LoRA on attention and feed-forward layers; peft still asks transformers under a deprecated name."""
    config = LoraConfig(
        r=2, lora_alpha=4, target_modules=["query", "value", "dense"], modules_to_save=["classifier"]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = get_peft_model(tiny_bert(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return model.train()


MODELS = {
    "full": tiny_bert,
    "frozen_embeddings": frozen_embeddings,
    "frozen_lower_layers": frozen_lower_layers,
    "only_biases": only_biases,
    "lora": lora,
}


def batch_of(units: list[int], *, tokens: int = TOKENS, seed: int = 1) -> PhysicalBatch:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(units), tokens)
    lengths = torch.randint(2, tokens + 1, (len(units), 1), generator=generator)
    mask = (torch.arange(tokens) < lengths).long()
    owners = torch.tensor(units, dtype=torch.int64)
    return PhysicalBatch(
        input_ids=torch.randint(1, 40, shape, generator=generator) * mask,
        attention_mask=mask,
        labels=torch.randint(0, 3, shape, generator=generator).masked_fill(mask == 0, -100),
        units=owners,
        weights=0.1 + torch.rand(max(units) + 1, generator=generator)[owners],
        num_units=max(units) + 1,
    )


SHAPES = {
    "one_window": [0, 1, 2, 3],
    "three_windows": [0, 0, 0, 1, 1, 1],
    "uneven_and_mixed": [2, 0, 1, 0, 2, 0, 3],
}


def unit_gradients(model: nn.Module, batch: PhysicalBatch) -> list[dict[str, Tensor]]:
    """The oracle: one ordinary backward pass for each unit alone."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = []
    for unit in range(batch.num_units):
        rows = torch.nonzero(batch.units == unit).flatten()
        loss = (token_loss(model, batch.take(rows)) * batch.weights[rows]).sum()
        found.append(dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True)))
    return found


def expected_sum(model: nn.Module, batch: PhysicalBatch, rule: ClipRule) -> tuple[dict[str, Tensor], Tensor]:
    units = unit_gradients(model, batch)
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in units[0]))
    groups = rule.groups(layers)
    bounds = dict(zip(groups, rule.bounds(groups).tolist(), strict=True))
    total = {name: torch.zeros_like(gradient) for name, gradient in units[0].items()}
    norms = []
    for gradients in units:
        norms.append(math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values())))
        for group, bound in bounds.items():
            members = [n for n in gradients if group in ("", n.rpartition(".")[0])]
            norm = math.sqrt(sum(float(gradients[n].double().square().sum()) for n in members))
            factor = bound / (norm + rule.gamma) if rule.mode == "auto" else min(1.0, bound / norm)
            for name in members:
                total[name] += factor * gradients[name]
    return total, torch.tensor(norms)


def assert_same(actual: ClippedSum, total: dict[str, Tensor], norms: Tensor) -> None:
    torch.testing.assert_close(actual.norms, norms, rtol=1e-4, atol=0.0, check_dtype=False)
    assert list(actual.gradients) == list(total)
    for name, gradient in total.items():
        difference = torch.linalg.vector_norm(actual.gradients[name] - gradient)
        assert difference <= 1e-4 * torch.linalg.vector_norm(gradient) + 1e-7, name
        assert actual.gradients[name].dtype == torch.float32


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make_model", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("engine", ENGINES)
def test_clipped_sum_is_the_sum_of_each_units_own_clipped_gradient(
    engine: str, make_model: Callable[[], nn.Module], shape: str
) -> None:
    model, batch = make_model(), batch_of(SHAPES[shape])
    assert_same(make_engine(engine, FLAT).clipped_sum(model, [batch]), *expected_sum(model, batch, FLAT))


@pytest.mark.parametrize(
    "rule",
    [
        ClipRule(mode="flat", max_grad_norm=1e4),
        ClipRule(mode="auto", max_grad_norm=0.3, gamma=0.05),
        ClipRule(mode="per_layer", max_grad_norm=0.5),
        ClipRule(mode="per_layer", max_grad_norm=0.5, layer_weights={"classifier": 3.0}),
    ],
    ids=["flat_unclipped", "auto", "per_layer", "per_layer_weighted"],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_every_mode_of_every_engine(engine: str, rule: ClipRule) -> None:
    if engine == "ghost" and rule.mode == "per_layer":
        with pytest.raises(ValidationError, match="cannot clip per_layer"):
            make_engine(engine, rule)
        return
    model, batch = tiny_bert(), batch_of(SHAPES["uneven_and_mixed"])
    assert_same(make_engine(engine, rule).clipped_sum(model, [batch]), *expected_sum(model, batch, rule))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_padding_id_in_the_text_gets_no_gradient_and_no_norm(engine: str) -> None:
    model, batch = tiny_bert(), batch_of([0, 0, 1])
    batch.input_ids[:, 0] = model.bert.embeddings.word_embeddings.padding_idx
    actual = make_engine(engine, FLAT).clipped_sum(model, [batch])
    assert_same(actual, *expected_sum(model, batch, FLAT))


@pytest.mark.parametrize("engine", ENGINES)
def test_physical_batches_add_up(engine: str) -> None:
    model, batch = tiny_bert(), batch_of([0, 0, 1, 2])
    parts = [batch.take(torch.tensor([0, 1])), batch.take(torch.tensor([2, 3]))]
    first = PhysicalBatch(**fields(parts[0]) | {"num_units": 1})
    second = PhysicalBatch(**fields(parts[1]) | {"num_units": 2, "units": parts[1].units - 1})
    actual = make_engine(engine, FLAT).clipped_sum(model, [first, second])
    assert_same(actual, *expected_sum(model, batch, FLAT))


def fields(batch: PhysicalBatch) -> dict[str, object]:
    return {name: getattr(batch, name) for name in PhysicalBatch.__dataclass_fields__}


@pytest.mark.parametrize(
    "rule", [FLAT, ClipRule(mode="auto"), ClipRule(mode="per_layer")], ids=lambda r: r.mode
)
def test_a_unit_in_parts_gives_what_it_gives_whole(rule: ClipRule) -> None:
    model, batch = tiny_bert(), batch_of([0, 0, 0, 0, 0])
    rows = [torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([4])]
    parts = [PhysicalBatch(**fields(batch.take(r)) | {"complete": r[0] == 4}) for r in rows]
    other = batch_of([0, 1], seed=9)
    engine = make_engine("bookkeeping", rule)
    whole = engine.clipped_sum(model, [other, batch, other])
    split = engine.clipped_sum(model, [other, *parts, other])
    assert split.num_units == 5
    assert_same(split, dict(whole.gradients), whole.norms)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_empty_draw_gives_zeros(engine: str) -> None:
    model = tiny_bert()
    empty = make_engine(engine, FLAT).clipped_sum(model, [])
    assert empty.num_units == 0
    assert all(not gradient.any() for gradient in empty.gradients.values())
    assert set(empty.gradients) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_unit_that_is_not_finite_contributes_zero_and_is_counted(engine: str, bad: float) -> None:
    model, batch = tiny_bert(), batch_of([0, 1, 1, 2])
    batch.weights[1] = bad
    actual = make_engine(engine, FLAT).clipped_sum(model, [batch])
    assert (actual.num_units, actual.num_nonfinite) == (3, 1)
    good = batch.take(torch.tensor([0, 3]))
    kept = PhysicalBatch(**fields(good) | {"num_units": 2, "units": torch.tensor([0, 1])})
    total, norms = expected_sum(model, kept, FLAT)
    for name, gradient in total.items():
        torch.testing.assert_close(actual.gradients[name], gradient, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(actual.norms[[0, 2]], norms, rtol=1e-4, atol=0, check_dtype=False)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_batch_of_bad_units_alone_gives_zeros(engine: str) -> None:
    model, batch = tiny_bert(), batch_of([0, 1])
    batch.weights[:] = math.nan
    actual = make_engine(engine, FLAT).clipped_sum(model, [batch])
    assert actual.num_nonfinite == 2
    assert all(not gradient.any() for gradient in actual.gradients.values())


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_and_hooks_of_the_model_are_left_as_they_were(engine: str) -> None:
    model = tiny_bert()
    mark = torch.ones_like(model.classifier.weight)
    model.classifier.weight.grad = mark
    make_engine(engine, FLAT).clipped_sum(model, [batch_of([0, 1])])
    assert model.classifier.weight.grad is mark
    assert model.classifier.bias.grad is None
    assert all(p.requires_grad and not hasattr(p, "grad_sample") for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())


def test_norms_agree_with_opacus_itself() -> None:
    model, batch = tiny_bert(), batch_of([0, 1, 2, 3])
    bookkeeping = make_engine("bookkeeping", FLAT).clipped_sum(model, [batch])
    positions = torch.arange(TOKENS).expand(4, TOKENS)
    wrapped = GradSampleModule(tiny_bert(), loss_reduction="sum")
    logits = wrapped(batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions).logits
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), batch.labels, reduction="none").sum(dim=1)
    with pytest.warns(UserWarning, match="Full backward hook is firing"):
        (losses * batch.weights).sum().backward()
    squares = [p.grad_sample.flatten(1).square().sum(dim=1) for p in wrapped.parameters()]
    torch.testing.assert_close(bookkeeping.norms, torch.stack(squares).sum(dim=0).sqrt(), rtol=1e-4, atol=0.0)


class Mixed(nn.Module):
    """A linear layer called twice, a shared weight, a convolution, a layer normalisation over two axes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 8)
        self.twice = nn.Linear(8, 8)
        self.norm = nn.LayerNorm((TOKENS, 8))
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.tied = nn.Linear(8, 40, bias=False)
        self.tied.weight = self.embed.weight
        self.pooled = nn.Linear(40, 3)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.norm(self.twice(torch.tanh(self.twice(self.embed(ids)))))
        hidden = torch.tanh(self.conv(hidden.transpose(1, 2)).transpose(1, 2))
        return self.pooled(self.tied(hidden).mean(dim=1))


def pooled_loss(model: nn.Module, batch: PhysicalBatch) -> Tensor:
    return nn.functional.cross_entropy(model(batch.input_ids), batch.input_ids[:, 0] % 3, reduction="none")


@pytest.mark.parametrize("engine", ["bookkeeping", "hooks"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shared_parameters_and_repeated_layers_are_summed_before_the_norm(engine: str, shape: str) -> None:
    torch.manual_seed(3)
    model, batch = Mixed().train(), batch_of(SHAPES[shape])
    named = dict(model.named_parameters())
    actual = make_engine(engine, FLAT).clipped_sum(model, [batch], pooled_loss)
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    norms = []
    for unit in range(batch.num_units):
        rows = torch.nonzero(batch.units == unit).flatten()
        loss = (pooled_loss(model, batch.take(rows)) * batch.weights[rows]).sum()
        gradients = torch.autograd.grad(loss, list(named.values()))
        norms.append(math.sqrt(sum(float(g.square().sum()) for g in gradients)))
        for name, gradient in zip(named, gradients, strict=True):
            total[name] += min(1.0, 0.5 / norms[-1]) * gradient
    assert_same(actual, total, torch.tensor(norms))


def test_ghost_refuses_layers_used_twice() -> None:
    with pytest.raises(ModelError, match=r"twice|tying"):
        make_engine("ghost", FLAT).clipped_sum(Mixed().train(), [batch_of([0, 1])], pooled_loss)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_loud_unit_does_not_exceed_the_sensitivity(engine: str) -> None:
    model, batch = tiny_bert(), batch_of([0, 1, 0, 2])
    batch.weights[batch.units == 0] *= 1e4
    chosen = make_engine(engine, FLAT)
    others = batch.take(torch.tensor([1, 3]))
    without = PhysicalBatch(**fields(others) | {"num_units": 2, "units": others.units - 1})
    with_all, with_others = (chosen.clipped_sum(model, [b]).gradients for b in (batch, without))
    moved = math.sqrt(sum(float((with_all[n] - with_others[n]).double().square().sum()) for n in with_all))
    assert 0.99 * FLAT.max_grad_norm < moved <= chosen.sensitivity() + 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("engine", ENGINES)
def test_released_norm_of_one_unit_stays_within_tau(engine: str, dtype: torch.dtype) -> None:
    chosen = make_engine(engine, FLAT, dtype=dtype)
    worst = 0.0
    for seed in range(4):
        batch = batch_of([0, 0, 0] if seed % 2 else [0], tokens=12, seed=seed)
        batch.weights.mul_(100.0)
        released = chosen.clipped_sum(tiny_bert(), [batch]).gradients
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in released.values()))
        worst = max(worst, norm / FLAT.max_grad_norm)
    assert 0.9 < worst <= 1.0 + chosen.tau
    assert chosen.sensitivity() == pytest.approx(FLAT.max_grad_norm * (1 + chosen.tau))


@pytest.mark.parametrize("engine", ["bookkeeping", "hooks"])
def test_bfloat16_norms_are_near_float32_norms_and_sums_are_float32(engine: str) -> None:
    model, batch = tiny_bert(), batch_of(SHAPES["uneven_and_mixed"])
    low = make_engine(engine, FLAT, dtype=torch.bfloat16).clipped_sum(model, [batch])
    torch.testing.assert_close(low.norms, expected_sum(model, batch, FLAT)[1].float(), rtol=0.05, atol=0.0)
    assert all(gradient.dtype == torch.float32 for gradient in low.gradients.values())


@pytest.mark.parametrize("engine", ENGINES)
def test_cancelling_tokens_do_not_hide_a_norm(engine: str) -> None:
    """Output gradients that nearly cancel over tokens: the Gram form must not report too small a norm."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False)).train()
    inputs = torch.ones(1, 8, 64) + 1e-4 * torch.randn(1, 8, 64)
    signs = torch.tensor([1.0, -1.0] * 4).view(1, 8, 1)

    def loss(module: nn.Module, _batch: PhysicalBatch) -> Tensor:
        return 1e3 * (module(inputs) * signs).sum(dim=(1, 2))

    chosen = make_engine(engine, FLAT)
    released = chosen.clipped_sum(model, [batch_of([0])], loss).gradients["0.weight"]
    assert torch.linalg.vector_norm(released.double()) <= chosen.sensitivity()


class Normalised(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layer(torch.ones(*ids.shape[:1], 8)))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (Normalised(nn.BatchNorm1d(8)).train(), "normalises over the batch"),
        (nn.Linear(2, 2).eval(), "evaluation mode"),
        (tiny_bert().requires_grad_(False), "no trained parameter"),
    ],
)
def test_models_that_mix_units_or_cannot_be_clipped_are_refused(
    engine: str, model: nn.Module, sentence: str
) -> None:
    with pytest.raises(ModelError, match=sentence):
        make_engine(engine, FLAT).clipped_sum(model, [batch_of([0, 1])], pooled_loss)


def test_gradient_checkpointing_is_refused() -> None:
    model = tiny_bert()
    model.activation_checkpointing_enable()
    with pytest.raises(ModelError, match="gradient checkpointing off"):
        make_engine("bookkeeping", FLAT).clipped_sum(model, [batch_of([0, 1])])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_trained_layer_outside_the_loss_is_refused(engine: str) -> None:
    model = tiny_bert()
    model.idle = nn.Linear(4, 4)
    with pytest.raises(ModelError, match="trained layer idle"):
        make_engine(engine, FLAT).clipped_sum(model, [batch_of([0, 1])])


def test_layers_without_a_sampler_are_refused() -> None:
    model = Normalised(nn.Bilinear(8, 8, 8))
    model.layer.forward = lambda x: nn.functional.bilinear(x, x, model.layer.weight)  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="Bilinear"):
        make_engine("bookkeeping", FLAT).clipped_sum(model.train(), [batch_of([0, 1])], pooled_loss)


def test_parts_that_do_not_follow_each_other_are_refused() -> None:
    engine, batch = make_engine("bookkeeping", FLAT), batch_of([0, 1])
    with pytest.raises(ValidationError, match="rest is missing"):
        engine.clipped_sum(tiny_bert(), [PhysicalBatch(**fields(batch_of([0])) | {"complete": False})])
    with pytest.raises(ValidationError, match="holds 2 units"):
        engine.clipped_sum(tiny_bert(), [PhysicalBatch(**fields(batch) | {"complete": False})])


@pytest.mark.parametrize(
    ("name", "dtype", "sentence"),
    [("hook", torch.float32, "'hooks'"), ("hooks", torch.float16, "float32 or torch.bfloat16")],
)
def test_bad_engine_settings_are_refused(name: str, dtype: torch.dtype, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        make_engine(name, FLAT, dtype=dtype)


def test_nothing_sensitive_is_shown() -> None:
    shown = repr(make_engine("bookkeeping", FLAT).clipped_sum(tiny_bert(), [batch_of([0, 1])]))
    assert shown == "ClippedSum()"
