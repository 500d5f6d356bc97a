"""Named tensors to one vector and back, exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from common.errors import DecodeError
from common.parameters import concatenate, layout_of, read_vector, vector_hash, write_vector


def small() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    return model


def test_what_is_written_is_read_and_frozen_parts_stay():
    model = small()
    frozen = model[0].bias.detach().clone()
    vector = np.arange(layout_of(model).size, dtype=np.float32)
    write_vector(model, vector)
    assert np.array_equal(read_vector(model), vector)
    assert torch.equal(model[0].weight, torch.arange(12.0).view(4, 3))
    assert torch.equal(model[0].bias, frozen)


def test_read_is_a_copy():
    model = small()
    vector = read_vector(model)
    vector += 1
    assert not np.array_equal(read_vector(model), vector)


def test_the_layout_is_of_the_trained_parameters_and_sees_frozen_ones():
    model = small()
    layout = layout_of(model)
    assert layout.names == ("0.weight", "1.weight", "1.bias", "2.weight", "2.bias")
    assert layout.size == 12 + 4 + 4 + 8 + 2
    with torch.no_grad():
        model[0].weight.add_(1)
    assert layout_of(model).hash == layout.hash
    with torch.no_grad():
        model[0].bias.add_(1)
    assert layout_of(model).hash != layout.hash


@pytest.mark.parametrize("shape", [(29,), (31,), (30, 1), (0,)])
def test_another_length_is_refused_and_changes_nothing(shape):
    model = small()
    before = read_vector(model)
    with pytest.raises(DecodeError, match="this model has 30 trained parameters"):
        write_vector(model, np.ones(shape, dtype=np.float32))
    assert np.array_equal(read_vector(model), before)


def test_a_model_with_nothing_to_train():
    model = small().requires_grad_(False)
    assert read_vector(model).shape == (0,)
    write_vector(model, np.zeros(0, dtype=np.float32))


def test_the_model_hash_is_of_the_bytes():
    vector = np.array([1.0, -0.0], dtype=np.float32)
    assert vector_hash(vector) == vector_hash(vector[::-1][::-1])
    assert vector_hash(vector) != vector_hash(np.array([1.0, 0.0], dtype=np.float32))
    assert vector_hash(vector) == vector_hash(vector.astype(">f4"))


def test_concatenate_keeps_the_order():
    joined = concatenate({"b": np.array([1.0], np.float32), "a": np.ones((2, 2), np.float32) * 3})
    assert joined.tolist() == [1, 3, 3, 3, 3]
    assert joined.dtype == np.float32
