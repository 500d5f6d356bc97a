"""The public warm-up: before round 1 the server trains on public notes, and says what that alone gave.

The notes come from whoever starts the run, synthetic or from a folder of public records; nothing of a site is
in them. What the server can check, it checks: none shares text with its own development or test set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from common.errors import DataError, PlanError
from common.host import ModelHost, schema_of
from common.ingestion import find_split, read_annotated
from common.model import HEAD
from common.overlap import overlapping
from common.plan import Plan, Warmup
from common.prediction import evaluate
from common.records import Note
from common.seeding import derive_seed, torch_seed
from common.training import FitSession

SYNTHETIC = "synthetic"
"""The `warmup.source` of notes that a simulation writes for itself."""


def public_split(section: Warmup) -> Path:
    """Return where the public notes of a warm-up are, for whoever does not write them for itself.

    Raises:
        DataError: `warmup.source` names no folder with a train split.
    """
    if section.source == SYNTHETIC:
        raise DataError(
            "warmup.source is 'synthetic', and only simulations write such notes; write them into a folder with "
            "'fedward-sim synthesize', or take any public records, and name that folder in the plan."
        )
    folder = Path(section.source)
    split = find_split(folder, "train") if folder.is_dir() else None
    if split is None:
        raise DataError(
            "warmup.source is neither 'synthetic' nor a folder with a train split; add a file or a folder "
            "called train.",
            path=folder,
        )
    return split


def public_notes(plan: Plan) -> tuple[Note, ...]:
    """Return the `train` split of the plan's `warmup.source`, at most `warmup.notes` of it; none without `[warmup]`.

    Raises:
        DataError: It is not a folder with a train split.
        InputError: A file in the folder cannot be used.
    """
    section = plan.warmup
    if section is None:
        return ()
    return read_annotated(public_split(section), schema_of(plan), split="train")[: section.notes]


@dataclass(frozen=True, kw_only=True)
class WarmedUp:
    """The model after the warm-up, and what the report says about it.

    Attributes:
        vector: The trained parameters, `(parameters,)`.
        facts: `source`, `notes`, `epochs`, `head_only`, and `devel_micro_f1` and `test_micro_f1` of the
            model after the warm-up alone, where there is such a set.
    """

    vector: NDArray[np.float32] = field(repr=False)
    facts: Mapping[str, Any]


def warm_up(
    plan: Plan, host: ModelHost, notes: Sequence[Note], *, devel: Sequence[Note], test: Sequence[Note]
) -> WarmedUp:
    """Train on public notes from the plan's initial model.

    Args:
        plan: A plan with `[warmup]`.
        host: The server's model, as the plan builds it; its weights are changed.
        notes: The public notes.
        devel: The server's development notes.
        test: The server's test notes; they are scored and nothing is chosen by them.

    Raises:
        PlanError: The plan has no `[warmup]`, or trains no head that `head_only` could mean.
        DataError: There are no notes, or one shares text with the development or test notes.
    """
    section = plan.warmup
    if section is None:
        raise PlanError("The plan has no [warmup] section, and a warm-up was asked for.")
    if not notes:
        raise DataError(f"The warm-up needs public notes (warmup.source is {section.source!r}) and got none.")
    require_disjoint(notes, devel, "development")
    require_disjoint(notes, test, "test")
    with host.lock:
        _fit(plan, section, host, notes)
        scores = {
            f"{name}_micro_f1": evaluate(
                host.model, held, host.encoding, precision=plan.training.precision
            ).micro_f1
            for name, held in (("devel", devel), ("test", test))
            if held
        }
        vector = host.read()
    facts = {
        "source": section.source,
        "notes": len(notes),
        "epochs": section.epochs,
        "head_only": section.head_only,
        **scores,
    }
    return WarmedUp(vector=vector, facts=facts)


def require_disjoint(notes: Sequence[Note], held: Sequence[Note], name: str) -> None:
    """Raise if a public note shares text with the notes of another set.

    Raises:
        DataError: One is; the sentence says how many and names the first public note.
    """
    shared = overlapping(notes, held)
    if shared:
        raise DataError(
            f"{len(shared)} of {len(notes)} public notes for the warm-up share text with the {name} set (the first is "
            f"{shared[0]!r}); scores would be flattered, so remove them from the public notes."
        )


def _fit(plan: Plan, section: Warmup, host: ModelHost, notes: Sequence[Note]) -> None:
    """Train the host's model."""
    examples = host.encoding.examples(notes)
    training = replace(
        plan.training, learning_rate=section.learning_rate, head_learning_rate=0.0, fedprox_mu=0.0
    )
    steps = section.epochs * -(-len(examples) // training.batch_size)
    frozen = _freeze_encoder(host.model) if section.head_only else []
    try:
        session = FitSession(host.model, training, pad_id=host.encoding.pad_id, total_steps=steps)
        with torch_seed(plan.seed, "warmup"):
            session.run(examples, steps, derive_seed(plan.seed, "order", "warmup"))
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _freeze_encoder(model: nn.Module) -> list[nn.Parameter]:
    """Stop the gradients of all but the head; return what was stopped."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not any(HEAD in name for name, _ in trained):
        raise PlanError("warmup.head_only is true, and the model has no trained head of the usual name.")
    stopped = [parameter for name, parameter in trained if HEAD not in name]
    for parameter in stopped:
        parameter.requires_grad_(False)
    return stopped
