"""A run's state after each round, in one file that is whole or is not there.

A checkpoint is one safetensors file: the arrays are its tensors, everything else is JSON in its header,
and a SHA-256 over both is checked at load. Flower resumes nothing by itself, so this is all that a run
continues from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from common.errors import InputError, PlanError
from common.files import remove_partial_files, replacing
from common.validation import require_int, require_text

FORMAT_VERSION: Final = 1
_NAME = re.compile(r"round-(\d{6,})\.safetensors")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a run needs to continue after `round`, and nothing that privacy or masking draws from.

    Attributes:
        round: The last completed round, from 0 (before the first).
        weights: The model's trained parameters, `(parameters,)` float32.
        optimizer_state: The server optimizer's vectors by name, float32.
        history: One dictionary of metrics for each completed round.
        rng_states: Model generators' states by name, opaque bytes. Secure generators are never saved.
        plan_hash: The plan's canonical SHA-256.
        run_id: fedward's run id, the same across resumes.
        extra: Further JSON values that the run loop wants back.
    """

    round: int
    weights: NDArray[np.float32] = field(repr=False)
    plan_hash: str
    run_id: str
    optimizer_state: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, repr=False)
    history: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    rng_states: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Check the fields that name the checkpoint and the vectors' type."""
        require_int("round", self.round, minimum=0, maximum=10**9)
        require_text("plan_hash", self.plan_hash)
        require_text("run_id", self.run_id)
        for name, vector in {"weights": self.weights, **self.optimizer_state}.items():
            if vector.dtype != np.float32 or vector.ndim != 1:
                raise InputError(f"A checkpoint's {name} must be a float32 vector, not {vector.dtype}.")

    def require_plan(self, plan_hash: str) -> None:
        """Raise if this checkpoint belongs to another plan.

        Raises:
            PlanError: The hashes differ.
        """
        if plan_hash != self.plan_hash:
            raise PlanError(
                f"The run's checkpoint is of plan {self.plan_hash[:12]}, but the plan given is "
                f"{plan_hash[:12]}; resume with the plan.toml in the run's folder, or start a new run."
            )


class CheckpointStore:
    """The checkpoints of one run, `round-000007.safetensors` and so on.

    Args:
        folder: Where the files are; made if it is not there.
        keep: How many of the newest to keep, at least 1.
    """

    def __init__(self, folder: Path | str, *, keep: int = 2) -> None:
        """Open the folder."""
        self.folder = Path(folder)
        self.keep = require_int("keep", keep, minimum=1, maximum=10_000)
        self.folder.mkdir(parents=True, exist_ok=True)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write the checkpoint and then remove those that are no longer kept.

        A process that dies inside this call leaves the earlier checkpoints, or those and this one whole.
        """
        remove_partial_files(self.folder)
        target = self.path(checkpoint.round)
        arrays = _arrays(checkpoint)
        document = _document(checkpoint)
        header = {"fedward": document, "sha256": _digest(document, arrays)}
        with replacing(target) as partial:
            save_file(arrays, partial, metadata=header)
        self._prune(checkpoint.round)
        return target

    def load(self, round_number: int) -> Checkpoint:
        """Return one round's checkpoint.

        Raises:
            InputError: The file is absent, broken or of another version; the sentence says which.
        """
        return _read(self.path(round_number))

    def latest(self, *, on_skip: Callable[[str], None] = _log.warning) -> Checkpoint | None:
        """Return the newest whole checkpoint, or None if there has been none.

        Args:
            on_skip: Gets one sentence for each newer file that is broken; the run then repeats its
                rounds. By default it goes to the log as a warning.

        Raises:
            InputError: There are checkpoints, and none of them is whole.
        """
        rounds = self.rounds()
        for round_number in reversed(rounds):
            try:
                return self.load(round_number)
            except InputError as error:
                on_skip(f"{error} It is left out; an earlier checkpoint is used.")
        if rounds:
            raise InputError(
                f"None of the {len(rounds)} checkpoints in {self.folder} is whole; start the run anew."
            )
        return None

    def rounds(self) -> list[int]:
        """Return the rounds that have a file, oldest first."""
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def path(self, round_number: int) -> Path:
        """Return where a round's checkpoint lies."""
        return self.folder / f"round-{round_number:06d}.safetensors"

    def _prune(self, newest: int) -> None:
        """Remove the rounds before the last `keep`, and those after `newest`: a resumed run redoes them."""
        rounds = self.rounds()
        kept = [number for number in rounds if number <= newest][-self.keep :]
        for number in set(rounds) - set(kept):
            self.path(number).unlink(missing_ok=True)


def _arrays(checkpoint: Checkpoint) -> dict[str, NDArray[Any]]:
    """Return the tensors of the file by name; generator states become bytes."""
    arrays: dict[str, NDArray[Any]] = {"weights": np.ascontiguousarray(checkpoint.weights)}
    for name, vector in checkpoint.optimizer_state.items():
        arrays[f"optimizer.{name}"] = np.ascontiguousarray(vector)
    for name, state in checkpoint.rng_states.items():
        arrays[f"rng.{name}"] = np.frombuffer(state, dtype=np.uint8)
    return arrays


def _document(checkpoint: Checkpoint) -> str:
    """Return the part of the checkpoint that is not an array, as JSON."""
    return json.dumps(
        {
            "format_version": FORMAT_VERSION,
            "round": checkpoint.round,
            "plan_hash": checkpoint.plan_hash,
            "run_id": checkpoint.run_id,
            "history": [dict(row) for row in checkpoint.history],
            "extra": dict(checkpoint.extra),
        }
    )


def _digest(document: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 over the JSON and every array's name, type, shape and bytes."""
    digest = hashlib.sha256()
    for part in _digest_parts(document, arrays):
        # Lengths in front keep two different lists of parts from running into the same bytes.
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def _digest_parts(document: str, arrays: Mapping[str, NDArray[Any]]) -> Iterator[bytes | memoryview]:
    """Yield what the digest covers, in a fixed order."""
    yield document.encode()
    for name in sorted(arrays):
        array = arrays[name]
        yield json.dumps([name, array.dtype.str, array.shape]).encode()
        # A memoryview of bytes: no copy of a model's weights.
        yield array.data.cast("B") if array.size else b""


def _read(path: Path) -> Checkpoint:
    """Open, verify and decode one file."""
    if not path.is_file():
        raise InputError(f"There is no checkpoint {path}.")
    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"The checkpoint {path} is not a whole safetensors file.") from error
    if header.get("sha256") != _digest(header.get("fedward", ""), arrays):
        raise InputError(f"The checkpoint {path} does not match its SHA-256; it was changed or cut short.")
    return _decode(path, json.loads(header["fedward"]), arrays)


def _decode(path: Path, document: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Checkpoint:
    """Make the checkpoint of a file whose digest is right."""
    if document["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"The checkpoint {path} has format version {document['format_version']}, and this fedward "
            f"reads version {FORMAT_VERSION}; resume it with the fedward that wrote it."
        )
    return Checkpoint(
        round=document["round"],
        weights=arrays["weights"],
        plan_hash=document["plan_hash"],
        run_id=document["run_id"],
        optimizer_state=dict(_with_prefix(arrays, "optimizer.")),
        history=tuple(document["history"]),
        rng_states={name: array.tobytes() for name, array in _with_prefix(arrays, "rng.")},
        extra=document["extra"],
    )


def _with_prefix(arrays: Mapping[str, NDArray[Any]], prefix: str) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the arrays whose name begins with `prefix`, without it."""
    return ((name.removeprefix(prefix), array) for name, array in arrays.items() if name.startswith(prefix))
