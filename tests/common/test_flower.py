"""Envelopes survive Flower's records; other content is refused."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from common.errors import DecodeError
from common.flower import from_record_dict, message_type, to_record_dict
from common.messages import KINDS, MESSAGE_VERSION, Envelope

scalars = st.one_of(
    st.text(st.characters(codec="utf-8")),
    st.integers(-(2**62), 2**62),
    st.floats(allow_nan=False),
    st.booleans(),
    st.binary(),
)
names = st.text("abcdefgh_", min_size=1, max_size=8).filter(lambda n: n not in ("version", "kind"))
arrays = npst.arrays(st.sampled_from([np.float32, np.uint32, np.uint8]), st.integers(0, 5))


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.dictionaries(names, scalars, max_size=4),
    st.dictionaries(names, arrays, max_size=3),
)
def test_round_trip(kind, header, values):
    envelope = Envelope(kind=kind, header=header, arrays=values)
    again = from_record_dict(to_record_dict(envelope))
    assert again.kind == kind
    assert dict(again.header) == header
    assert list(again.arrays) == list(values)
    for name, value in values.items():
        assert again.arrays[name].dtype == value.dtype
        assert again.arrays[name].tobytes() == value.tobytes()


def test_a_record_goes_through_flowers_own_serialisation():
    content = to_record_dict(
        Envelope(kind="train", header={"round": 1}, arrays={"model": np.ones(3, np.float32)})
    )
    objects = get_all_nested_objects(content)
    assert get_object_tree(content).object_id in objects
    copy = RecordDict.inflate(content.deflate(), children=dict(content.children or {}))
    assert from_record_dict(copy).arrays["model"].tolist() == [1, 1, 1]


def test_arrays_that_are_not_contiguous_travel():
    array = np.arange(6, dtype=np.float32)[::2]
    again = from_record_dict(to_record_dict(Envelope(kind="upload", arrays={"delta": array})))
    assert again.arrays["delta"].tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "no fedward header"),
        ({"kind": "train"}, "version None"),
        ({"version": MESSAGE_VERSION + 1, "kind": "train"}, "speaks version"),
        ({"version": MESSAGE_VERSION, "kind": "nonsense"}, "'nonsense' is not one of"),
        ({"version": MESSAGE_VERSION}, "'None' is not one of"),
    ],
)
def test_foreign_content_is_refused(header, message):
    content = {} if header is None else {"fedward.header": ConfigRecord(header)}
    with pytest.raises(DecodeError, match=message):
        from_record_dict(RecordDict(content))


def test_an_array_of_broken_bytes_is_refused():
    broken = Array(dtype="float32", shape=(2,), stype="numpy.ndarray", data=b"junk")
    content = to_record_dict(Envelope(kind="train"))
    content["fedward.arrays"] = ArrayRecord({"model": broken})
    with pytest.raises(DecodeError, match="does not decode"):
        from_record_dict(content)


def test_a_pickled_array_is_never_loaded():
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    pickled = Array(dtype="object", shape=(1,), stype="numpy.ndarray", data=buffer.getvalue())
    content = to_record_dict(Envelope(kind="train"))
    content["fedward.arrays"] = ArrayRecord({"model": pickled})
    with pytest.raises(DecodeError, match="does not decode"):
        from_record_dict(content)


def test_message_types_are_flowers():
    assert [message_type(kind) for kind in KINDS] == [
        "query.hello",
        "train",
        "train.share_keys",
        "train.upload",
        "train.confirm",
        "train.unmask",
    ]
