"""The public notes of a plan's `[warmup]`: synthetic ones, or a folder of public records."""

from __future__ import annotations

from dataclasses import replace

from common.errors import DataError
from common.host import schema_of
from common.labels import LabelSchema
from common.plan import Plan
from common.records import Note
from server.warmup import SYNTHETIC, public_notes
from simulation.synthetic import generate
from simulation.synthetic_lexicon import LABELS

_HOSPITALS = 4


def warmup_notes(plan: Plan) -> tuple[Note, ...]:
    """Return the public notes that the plan's `[warmup]` asks for; none where it has no such section.

    Synthetic notes keep the entity types that the plan knows; notes of a folder are its `train` split, at most
    `warmup.notes` of them.

    Raises:
        DataError: The folder has no `train`, or the synthetic notes have none of the plan's entity types.
        InputError: A file in the folder cannot be used.
    """
    section = plan.warmup
    if section is None:
        return ()
    if section.source == SYNTHETIC:
        return _synthetic(plan, section.notes)
    return public_notes(plan)


def _synthetic(plan: Plan, count: int) -> tuple[Note, ...]:
    """Write so many public notes, by as many hands as a corpus of theirs has."""
    schema = schema_of(plan)
    if not {_mapped(label, schema) for label in LABELS} - {""}:
        raise DataError(
            f"The synthetic notes have the types {', '.join(LABELS)}, and the plan has none of them "
            f"(task.entity_types is {', '.join(schema.entity_types)}); add a task.label_map, or name a folder of "
            "public records as warmup.source."
        )
    each = -(-count // _HOSPITALS)
    corpus = generate(
        hospital_count=_HOSPITALS,
        notes_per_hospital=each,
        seed=plan.seed,
        devel_notes=0,
        test_notes=0,
        public=True,
    )
    return tuple(_kept(note, schema) for note in corpus.all_train[:count])


def _kept(note: Note, schema: LabelSchema) -> Note:
    """Return the note with the plan's entity types alone."""
    kept = []
    for span in note.spans:
        label = _mapped(span.label, schema)
        if label:
            kept.append(replace(span, label=label))
    return replace(note, spans=tuple(kept))


def _mapped(label: str, schema: LabelSchema) -> str:
    """Return the plan's entity type of a synthetic label, "" where it has none."""
    if label in schema.mapping:
        return schema.mapping[label]
    return label if label in schema.entity_types else ""
