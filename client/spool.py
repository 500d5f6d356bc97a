"""A site's finished update of the present round, on disk between two exchanges, mode 0600.

One file per run. A retry of the same round from the same model re-sends it: no second training, no
second charge. Attempt secrets (keys, masks) are never in it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from common.errors import RefusedError
from common.files import replacing
from common.records import ModelUpdate


class UpdateSpool:
    """The spool of one site for one run.

    Args:
        folder: Where the file is; made with mode 0700.
        plan_hash: The plan; part of the file's key.
        run_id: fedward's run id, which survives resumes.
    """

    def __init__(self, folder: Path, *, plan_hash: str, run_id: str) -> None:
        self.folder = folder
        self.key = {"plan_hash": plan_hash, "run_id": run_id}
        self.path = folder / f"{plan_hash[:16]}-{run_id}.update"

    def save(self, update: ModelUpdate, *, server_round: int, model_hash: str) -> None:
        """Write the update of a round in one piece; an earlier round's is replaced."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        header = self._header(server_round, model_hash) | {"weight": repr(update.weight)}
        with replacing(self.path) as partial:
            os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))
            save_file(
                {k: np.asarray(v) for k, v in update.fields.items()},
                partial,
                metadata={"fedward": json.dumps(header)},
            )
            partial.chmod(0o600)

    def holds(self, *, server_round: int, model_hash: str) -> bool:
        """Return whether `load` would find an update; only the file's header is read."""
        with self._opened(server_round, model_hash) as found:
            return found is not None

    def load(self, *, server_round: int, model_hash: str) -> ModelUpdate | None:
        """Return the update of exactly this round and model, or None."""
        with self._opened(server_round, model_hash) as found:
            if found is None:
                return None
            file, weight = found
            try:
                fields = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            except SafetensorError:
                return None
            return ModelUpdate(fields=fields, weight=weight)

    @contextmanager
    def _opened(self, server_round: int, model_hash: str) -> Iterator[tuple[Any, float] | None]:
        """Yield the open file and the update's weight, or None where the file is absent or of another round."""
        with ExitStack() as stack:
            try:
                file = stack.enter_context(safe_open(self.path, framework="numpy"))
            except (FileNotFoundError, SafetensorError):
                yield None
                return
            header = json.loads((file.metadata() or {}).get("fedward", "{}"))
            weight = float(header.pop("weight", "1"))
            yield (file, weight) if header == self._header(server_round, model_hash) else None

    def digest(self) -> str:
        """Return the SHA-256 of the file, in hexadecimal.

        Raises:
            RefusedError: There is no file.
        """
        try:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise RefusedError("There is no finished update in the spool.") from None

    def clear(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)

    def _header(self, server_round: int, model_hash: str) -> dict[str, object]:
        return {**self.key, "round": server_round, "model_hash": model_hash}
