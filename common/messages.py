"""What server and sites say to each other: one versioned envelope per stage of a round.

An envelope is a header of scalars and byte strings, and named arrays. It knows nothing of Flower;
`common.flower` puts it into a RecordDict and takes it out again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from common.errors import DecodeError

MESSAGE_VERSION = 1

HELLO = "hello"
TRAIN = "train"
SHARE_KEYS = "share_keys"
UPLOAD = "upload"
CONFIRM = "confirm"
UNMASK = "unmask"
STAGES = (TRAIN, SHARE_KEYS, UPLOAD, CONFIRM, UNMASK)
KINDS = (HELLO, *STAGES)

LEDGER_HEAD = "ledger_head"
"""Where `train` carries the signed head of a site's privacy ledger, there and back, under a private plan."""

ISOLATION = "isolation"
"""What a site's agent adds to its `hello`: `users` where it runs as another user than its SuperNode, else `off`."""

T = TypeVar("T")
Scalar = str | int | float | bool | bytes


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """One request or reply.

    Attributes:
        kind: The stage, one of `KINDS`.
        header: Named scalars; which ones is each stage's own matter.
        arrays: Named numpy arrays (model vectors, masked vectors).
    """

    kind: str
    header: Mapping[str, Scalar] = field(default_factory=dict, repr=False)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Refuse kinds that this version does not know."""
        if self.kind not in KINDS:
            raise DecodeError(f"A message of kind {self.kind!r} is not one of {', '.join(KINDS)}.")

    @property
    def refusal(self) -> str | None:
        """The fixed code of a site that did not do what was asked, or None."""
        code = self.header.get("code")
        return code if isinstance(code, str) and code else None

    def text(self, name: str) -> str:
        """Return a header entry that must be a text."""
        return self._typed(name, str)

    def integer(self, name: str) -> int:
        """Return a header entry that must be a whole number."""
        value = self.header.get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise DecodeError(f"A {self.kind} message lacks the whole number {name!r}.")
        return value

    def payload(self, name: str) -> bytes:
        """Return a header entry that must be a byte string."""
        return self._typed(name, bytes)

    def vector(self, name: str, dtype: type[np.generic]) -> NDArray[Any]:
        """Return a one-dimensional array of the given type."""
        array = self.arrays.get(name)
        if array is None or array.ndim != 1 or array.dtype != np.dtype(dtype):
            raise DecodeError(f"A {self.kind} message lacks the {np.dtype(dtype).name} vector {name!r}.")
        return array

    def _typed(self, name: str, kind: type[T]) -> T:
        value = self.header.get(name)
        if not isinstance(value, kind):
            raise DecodeError(f"A {self.kind} message lacks the {kind.__name__} {name!r}.")
        return value


def refusal_of(kind: str, code: str) -> Envelope:
    """Return the reply of a site that does not do what was asked: a fixed code and nothing else."""
    return Envelope(kind=kind, header={"code": code})
