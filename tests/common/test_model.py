"""The classifier trains what the plan says, opens what it can, and is saved as a plain folder."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForTokenClassification

from common.errors import ModelError
from common.model import (
    autocast,
    autocast_dtype,
    build_model,
    is_local,
    load_model,
    model_tags,
    resolve_device,
    save_model,
)
from common.parameters import layout_of, read_vector, write_vector
from common.tokenization import load_tokenizer

TAGS = ("O", "B-Disease", "I-Disease")
CPU = torch.device("cpu")


@pytest.fixture
def build(make_plan):
    def make(seed=1, **fields):
        section = make_plan(**{f"model__{name}": value for name, value in fields.items()}).model
        return build_model(section, TAGS, seed=seed)

    return make


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def step(model):
    """Take one large step on all that asks for gradients; return the names of what changed."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = torch.arange(5, 13).view(2, 4)
    model.train()
    model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.square().sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def test_by_default_everything_is_trained(build):
    model = build()
    assert trained(model) == {name for name, _ in model.named_parameters()}


def test_frozen_embeddings(build):
    model = build(freeze_embeddings=True)
    everything = {name for name, _ in model.named_parameters()}
    assert trained(model) == {name for name in everything if ".embeddings." not in name}
    assert not any(".embeddings." in name for name in step(model))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [(0, ("classifier.",)), (1, (".layer.1.", "classifier.")), (2, (".layer.", "classifier."))],
)
def test_trained_layers_count_from_the_top(build, layers, expected):
    model = build(trained_layers=layers)
    names = {name for name, _ in model.named_parameters()}
    assert trained(model) == {name for name in names if any(part in name for part in expected)}
    assert {"classifier.weight", "classifier.bias"} <= step(model) <= trained(model)


def test_lora_trains_adapters_and_the_head(build):
    model = build(lora_rank=2)
    assert trained(model)
    for name in trained(model):
        assert "lora_" in name or "classifier" in name
    touched = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trained(model) if "lora_" in name}
    assert touched == {"query", "value"}
    assert any("classifier" in name for name in trained(model))
    assert step(model) <= trained(model)


@pytest.mark.parametrize("fields", [{}, {"lora_rank": 2}, {"trained_layers": 1}], ids=str)
def test_a_saved_model_is_plain_and_says_the_same(build, fields, tiny_encoder, tmp_path, capfd):
    model = build(**fields)
    write_vector(model, read_vector(model) + 0.05)
    save_model(model, load_tokenizer(tiny_encoder), tmp_path / "model")
    assert capfd.readouterr() == ("", "")
    plain = AutoModelForTokenClassification.from_pretrained(tmp_path / "model").eval()
    capfd.readouterr()
    ids = torch.arange(5, 17).view(2, 6)
    model.eval()
    with torch.no_grad():
        expected, found = model(input_ids=ids).logits, plain(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not any("lora" in name for name, _ in plain.named_parameters())
    assert model_tags(load_model(tmp_path / "model")) == TAGS
    assert load_tokenizer(tmp_path / "model")("asthma").input_ids


def test_saving_with_adapters_leaves_the_model_as_it_was(build, tiny_encoder, tmp_path):
    model = build(lora_rank=2)
    before, names = read_vector(model), trained(model)
    save_model(model, load_tokenizer(tiny_encoder), tmp_path / "model")
    assert trained(model) == names
    assert read_vector(model).tobytes() == before.tobytes()


def test_the_head_follows_the_seed_alone(build):
    torch.manual_seed(1)
    one = read_vector(build(seed=3))
    torch.manual_seed(2)
    two, other = read_vector(build(seed=3)), read_vector(build(seed=4))
    assert one.tobytes() == two.tobytes()
    assert one.tobytes() != other.tobytes()


def test_two_encoders_differ_in_their_layout_although_the_head_is_all_that_is_trained(
    build, tiny_encoder, tmp_path
):
    other = tmp_path / "other"
    shutil.copytree(tiny_encoder, other)
    encoder = AutoModelForTokenClassification.from_pretrained(other)
    with torch.no_grad():
        encoder.bert.embeddings.word_embeddings.weight[7, 3] += 1
    encoder.bert.save_pretrained(other)
    one = layout_of(build(trained_layers=0))
    two = layout_of(build(trained_layers=0, encoder=str(other)))
    assert one.shapes == two.shapes
    assert one.hash != two.hash


def test_dropout_is_the_plans(build):
    assert build(dropout=0.25).config.hidden_dropout_prob == 0.25


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": 128}, "set model.max_tokens to at most 64"),
        ({"trained_layers": 3}, "has 2 layers"),
        ({"encoder": "/nowhere/at-all"}, "cannot be opened as an encoder"),
    ],
)
def test_what_the_encoder_cannot_do(build, fields, message):
    with pytest.raises(ModelError, match=message):
        build(**fields)


@pytest.fixture
def saved(build, tiny_encoder, tmp_path):
    folder = tmp_path / "model"
    save_model(build(), load_tokenizer(tiny_encoder), folder)
    return folder


def damage_config(folder):
    (folder / "config.json").write_text("{ not json")


def unknown_architecture(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "nonsense"}))


def cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def other_width(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def no_config(folder):
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    "harm", [damage_config, unknown_architecture, cut_weights, other_width, no_weights, no_config]
)
def test_a_folder_that_is_no_model(saved, harm):
    harm(saved)
    with pytest.raises(ModelError) as caught:
        load_model(saved)
    assert str(saved) in str(caught.value)
    assert caught.value.exit_code == 2


def test_devices():
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ModelError, match="must be auto, cpu, cuda or cuda:N"):
        resolve_device("gpu0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
def test_cuda_that_is_not_there():
    with pytest.raises(ModelError, match="no CUDA device is present"):
        resolve_device("cuda:0")


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"),
    [(False, False, None), (True, False, torch.bfloat16), (False, True, torch.bfloat16)],
)
def test_auto_takes_bf16_only_where_the_cpu_has_it(monkeypatch, avx512, amx, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert autocast_dtype(CPU, "auto") is expected
    assert autocast_dtype(CPU, "float32") is None
    assert autocast_dtype(CPU, "bf16") is torch.bfloat16


@pytest.mark.parametrize("native", [True, False])
def test_auto_takes_bf16_only_where_cuda_has_it_without_emulation(monkeypatch, native):
    def supported(including_emulation=True):
        return True if including_emulation else native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert autocast_dtype(torch.device("cuda"), "auto") is (torch.bfloat16 if native else None)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_autocast_is_what_it_was_told(dtype):
    layer = torch.nn.Linear(2, 2)
    with autocast(CPU, dtype):
        assert layer(torch.ones(1, 2)).dtype == (dtype or torch.float32)


def test_a_folder_is_local_and_a_name_is_not_unless_the_hub_is_off(monkeypatch, tiny_encoder):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert is_local(str(tiny_encoder))
    assert not is_local("some/name")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert is_local("some/name")
