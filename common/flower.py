"""Adapter: envelopes in and out of Flower's RecordDict (flwr 1.42 Message API)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from common.errors import DecodeError
from common.messages import HELLO, MESSAGE_VERSION, Envelope

_HEADER = "fedward.header"
_ARRAYS = "fedward.arrays"


def message_type(kind: str) -> str:
    """Return Flower's message type of a stage: `train` itself, or an action below `train` or `query`."""
    if kind == HELLO:
        return "query.hello"
    return "train" if kind == "train" else f"train.{kind}"


def to_array_record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Put named arrays into a record; it can be part of several RecordDicts."""
    return ArrayRecord({name: Array(np.ascontiguousarray(values)) for name, values in arrays.items()})


def to_record_dict(envelope: Envelope, arrays: ArrayRecord | None = None) -> RecordDict:
    """Put an envelope into a RecordDict.

    Args:
        envelope: The envelope.
        arrays: Its arrays as a record, where the caller has made it already.
    """
    header = {"version": MESSAGE_VERSION, "kind": envelope.kind, **envelope.header}
    content: dict[str, Any] = {_HEADER: ConfigRecord(cast(Any, header))}
    if envelope.arrays:
        content[_ARRAYS] = arrays if arrays is not None else to_array_record(envelope.arrays)
    return RecordDict(content)


def from_record_dict(content: RecordDict) -> Envelope:
    """Take an envelope out of a RecordDict.

    Raises:
        DecodeError: The content is not an envelope of this version.
    """
    header = content.config_records.get(_HEADER)
    if header is None:
        raise DecodeError("A message has no fedward header; it was sent by another application.")
    values = dict(header)
    version = values.pop("version", None)
    if version != MESSAGE_VERSION:
        raise DecodeError(
            f"A message has version {version!r}; this fedward speaks version {MESSAGE_VERSION}."
        )
    kind = values.pop("kind", None)
    arrays: Mapping[str, Array] = content.array_records.get(_ARRAYS) or {}
    try:
        decoded = {name: array.numpy() for name, array in arrays.items()}
    except (ValueError, TypeError) as error:
        raise DecodeError(f"An array of a message does not decode ({type(error).__name__}).") from None
    return Envelope(kind=str(kind), header=cast(Any, values), arrays=decoded)
