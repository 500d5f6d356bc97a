"""A run's folder: the plan, the metrics of every round, checkpoints, the model, the report and the result.

```
runs/<name>/
├── plan.toml         the plan as it was given; a folder without it is no run
├── metrics.jsonl     one line a round
├── checkpoints/      what a resume continues from
├── tensorboard/      event files
├── model/            a plain Hugging Face folder
├── audit.jsonl       the hash-chained audit log
├── attempt.json      the newest attempt at secure aggregation
├── privacy.json      how often each site was asked to train, under a private plan
├── warmup.json       what the public warm-up gave
├── progress.json     where the run stands, for people
├── log.jsonl         the ServerApp's log
├── report.html       self-contained
└── result.json       the headline numbers
```
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from common.errors import InputError
from common.files import remove_partial_files, replacing, write_atomically

STOP_REQUEST: Final = ".stop"
"""A file of this name asks the run to stop after its current round."""

_FILES: Final = (
    STOP_REQUEST,
    "plan.toml",
    "metrics.jsonl",
    "audit.jsonl",
    "attempt.json",
    "privacy.json",
    "warmup.json",
    "progress.json",
    "log.jsonl",
    "report.html",
    "result.json",
)
_FOLDERS: Final = ("checkpoints", "tensorboard", "model", "spool", "mlflow", "wandb")
_LOCK: Final = ".lock"

# Texts are names of sites and stages, and fixed codes; keys may also be labels, in any script.
_WORD: Final = re.compile(r"[-A-Za-z0-9_.:/+@]{0,80}")
_KEY: Final = re.compile(r"\S{1,80}")


class RunFolder:
    """One run's folder, locked against other processes until `close`.

    Make one with `create` or `open`.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path | str) -> None:
        """Lock the folder, which exists."""
        self.path = Path(path)
        self._lock: int | None = lock_folder(self.path)
        remove_partial_files(self.path)

    @classmethod
    def create(cls, path: Path | str, plan_text: str, *, replace: bool = False) -> Self:
        """Begin a new run.

        Args:
            path: A folder that is absent, empty or, with `replace`, an earlier run's.
            plan_text: The plan's TOML, kept as `plan.toml`.
            replace: Whether to remove an earlier run; what else lies in the folder is never removed.

        Raises:
            InputError: The folder holds a run already, or files that are not a run's, or is in use.
        """
        folder = Path(path)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; a run needs a folder.")
        if (folder / "plan.toml").exists():
            if not replace:
                raise InputError(
                    f"{folder} holds a run already; resume it with --resume, or name another folder."
                )
        elif folder.exists():
            _require_no_strangers(folder)
        folder.mkdir(parents=True, exist_ok=True)
        run = cls(folder)
        run._clear()
        for name in ("checkpoints", "tensorboard"):
            (folder / name).mkdir()
        # The plan comes last: only now is the folder a run.
        write_atomically(folder / "plan.toml", plan_text)
        return run

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a run's folder to continue it.

        Raises:
            InputError: It is not a run's folder, or another process is at work in it.
        """
        folder = Path(path)
        if not (folder / "plan.toml").is_file():
            raise InputError(f"{folder} is not a run's folder: it has no plan.toml.")
        return cls(folder)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.resolve().name

    @property
    def plan_path(self) -> Path:
        """Where the plan is."""
        return self.path / "plan.toml"

    @property
    def metrics_path(self) -> Path:
        """Where the rounds' metrics are."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints_path(self) -> Path:
        """The folder for a `CheckpointStore`."""
        return self.path / "checkpoints"

    @property
    def tensorboard_path(self) -> Path:
        """The folder of TensorBoard's events."""
        return self.path / "tensorboard"

    @property
    def model_path(self) -> Path:
        """Where the final model goes."""
        return self.path / "model"

    @property
    def audit_path(self) -> Path:
        """Where the audit log is."""
        return self.path / "audit.jsonl"

    @property
    def report_path(self) -> Path:
        """Where the report goes."""
        return self.path / "report.html"

    @property
    def result_path(self) -> Path:
        """Where the headline numbers go."""
        return self.path / "result.json"

    def plan_text(self) -> str:
        """Return the plan's TOML."""
        return self.plan_path.read_text("utf-8")

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one round's metrics; they are on the disk when this returns.

        Args:
            row: `round` and further numbers, names or mappings of them; see `plain_metrics`.
        """
        with self.metrics_path.open("ab") as file:
            file.write(_line(row))
            file.flush()
            os.fsync(file.fileno())

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the rows in the file; a last line that was cut short by a crash is left out."""
        return read_metrics(self.path)

    def rewind(self, round_number: int, history: Iterable[Mapping[str, Any]] = ()) -> None:
        """Make `metrics.jsonl` say what was so after `round_number`: no round twice, none missing.

        Args:
            round_number: The round of the checkpoint that the run continues from.
            history: The checkpoint's rows, which win over the file's: a crash may fall between the two.
        """
        rows = {row["round"]: row for row in self.read_metrics()}
        rows |= {row["round"]: dict(row) for row in history}
        kept = [rows[number] for number in sorted(rows) if number <= round_number]
        with replacing(self.metrics_path) as partial:
            partial.write_bytes(b"".join(map(_line, kept)))

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json` in one piece; numbers that are not finite become null."""
        write_atomically(self.result_path, json.dumps(_plain(result), indent=2, allow_nan=False) + "\n")

    def write_report(self, html: str) -> None:
        """Write `report.html` in one piece; see `server.reporting.render_report`."""
        write_atomically(self.report_path, html)

    def close(self) -> None:
        """Let other processes at the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        """Return the folder itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Unlock the folder."""
        self.close()

    def _clear(self) -> None:
        """Remove an earlier run: first the plan, so that a crash on the way leaves no half of a run."""
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)
        for name in _FOLDERS:
            if (self.path / name).exists():
                shutil.rmtree(self.path / name)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's `metrics.jsonl` without opening the run; see `RunFolder.read_metrics`."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    *lines, last = path.read_bytes().split(b"\n")
    del last  # Empty after a whole line, else the torn one.
    return [json.loads(line) for line in lines]


def plain_metrics(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a round's metrics as plain JSON values.

    NumPy numbers become Python's and numbers that are not finite become None. Texts may only be
    words of at most 80 ASCII letters, digits and `-_.:/+@`, and keys have no white space, so that no piece
    of a note gets into a run's metrics.

    Raises:
        ValueError: A value is something else, or `round` is missing; the value itself is not shown.
    """
    if not isinstance(row.get("round"), int):
        raise ValueError("A row of metrics needs a whole number as `round`.")
    plain = _plain(row)
    _require_words("", plain)
    return plain  # type: ignore[no-any-return]


def _line(row: Mapping[str, Any]) -> bytes:
    """Return a row as one line of JSON."""
    return json.dumps(plain_metrics(row), allow_nan=False).encode() + b"\n"


def _plain(value: Any) -> Any:
    """Return `value` made of JSON's own types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"A {type(value).__name__} cannot be part of a run's metrics or result.")


def _require_words(where: str, value: Any) -> None:
    """Raise if a text in `value` is not a word."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not _KEY.fullmatch(key):
                raise ValueError(
                    f"A key at {where or 'the top'} is not a word, so it cannot be part of the metrics."
                )
            _require_words(f"{where}{key}.", item)
    elif isinstance(value, list):
        for item in value:
            _require_words(where, item)
    elif isinstance(value, str) and not _WORD.fullmatch(value):
        raise ValueError(
            f"The text at {where.rstrip('.')} is not a word, so it cannot be part of the metrics."
        )


def _require_no_strangers(folder: Path) -> None:
    """Raise if the folder holds what no run leaves behind."""
    known = {*_FILES, *_FOLDERS, _LOCK}
    strangers = sorted(item.name for item in folder.iterdir() if item.name not in known)
    if strangers and not all(name.endswith(".part") for name in strangers):
        raise InputError(
            f"{folder} is not empty and not a run's folder ({strangers[0]}); name another folder."
        )


def lock_folder(folder: Path) -> int:
    """Lock a folder for this process until the descriptor that is returned is closed.

    Raises:
        InputError: Another process holds it.
    """
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # lockf, not flock: its lock dies with this process even when forked workers live on.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise InputError(f"Another process is at work in {folder}; wait for it or stop it first.") from error
    return descriptor
