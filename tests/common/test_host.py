"""What the sites of a process share is built from the plan alone."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import ModelError
from common.host import ModelHost, build_encoding, schema_of


def test_a_host_is_the_same_for_the_same_plan(make_plan):
    one, two = ModelHost.build(make_plan(), device="cpu"), ModelHost.build(make_plan(), device="cpu")
    assert one.layout == two.layout
    assert one.read().tobytes() == two.read().tobytes()


def test_what_is_written_is_read(make_plan):
    host = ModelHost.build(make_plan(), device="cpu")
    vector = np.linspace(-1, 1, host.layout.size, dtype=np.float32)
    host.write(vector)
    assert host.read().tobytes() == vector.tobytes()


def test_the_schema_is_the_plans_and_not_the_datas(make_plan):
    schema = schema_of(make_plan(task__entity_types=["Drug", "Disease"], task__label_map={"Med": "Drug"}))
    assert schema.tags == ("O", "B-Drug", "I-Drug", "B-Disease", "I-Disease")


def test_the_encoding_is_the_plans(make_plan, make_notes):
    encoding = build_encoding(make_plan(model__max_tokens=16, model__stride=2))
    assert max(example.num_tokens for example in encoding.examples(make_notes(20))) <= 16
    assert encoding.pad_id == encoding.tokenizer.pad_token_id


def test_a_device_that_is_not_one(make_plan):
    with pytest.raises(ModelError, match="device is 'quantum'"):
        ModelHost.build(make_plan(), device="quantum")


def test_repr_shows_no_weights(make_plan):
    assert "tensor" not in repr(ModelHost.build(make_plan(), device="cpu"))
