"""`fedward-sim bench prepare`: notes a second through every stage, and whether memory stays flat.

Synthetic notes of about 500 words are read from JSONL, cleaned, de-identified by patterns, tokenised, held against
each other and written, by as many processes as there are cores. All of it counts, the start of the processes included.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from client.deidentification_settings import DeidentificationTable
from client.preparation_settings import PreparationTable
from client.prepare import PrepareJob, prepare
from common.ingestion_jsonl import json_line
from common.plan import Plan
from common.preparation import require_stages
from common.records import Note
from simulation.bench_child import in_child
from simulation.synthetic import generate

_MIB = 2**20
_WORDS = 500
_NOTES_PER_CORPUS = 500
_SETTLED = 0.2
"""From this share of the notes on, memory must not grow but for the index."""


def run(quick: bool) -> dict[str, float]:
    """Return the figures by name.

    Args:
        quick: 600 notes in place of 10,000.
    """
    count = 600 if quick else 10_000
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "train.jsonl"
        with source.open("w", encoding="utf-8") as file:
            file.writelines(json_line(note) + "\n" for note in _notes(count))
        return in_child(_measure, source, Path(folder) / "out", count)


def _notes(count: int) -> Iterator[Note]:
    """Yield synthetic notes, a corpus at a time."""
    for number, start in enumerate(range(0, count, _NOTES_PER_CORPUS)):
        size = min(_NOTES_PER_CORPUS, count - start)
        corpus = generate(
            hospital_count=1,
            notes_per_hospital=size,
            seed=100 + number,
            devel_notes=0,
            test_notes=0,
            words=(_WORDS, _WORDS),
        )
        for note in corpus.all_train:
            yield Note(
                note_id=f"{number}-{note.note_id}",
                text=note.text,
                spans=note.spans,
                patient_id=f"{number}-{note.patient_id}",
            )


def _measure(source: Path, out: Path, count: int) -> dict[str, float]:
    """Prepare the notes in this process and its workers; run in a child."""
    plan = Plan.from_table({"task": {"entity_types": ["Entity"]}})
    stages = [
        "unicode",
        "line_breaks",
        "whitespace",
        {"name": "boilerplate", "phrases": ["Electronically signed by", "Printed on"]},
        "sections",
        "repeated_parts",
        {"name": "near_duplicates", "within": "site"},
    ]
    site = PreparationTable(stages=require_stages("stages", stages), format="jsonl")
    workers = len(os.sched_getaffinity(0))
    job = PrepareJob(
        source=source,
        site=site,
        workers=workers,
        tokens_of=plan,
        deidentification=DeidentificationTable(mode="tag"),
    )
    seen, settled, most = 0, 0.0, 0.0

    def on_note() -> None:
        nonlocal seen, settled, most
        seen += 1
        if seen % 50 == 0 or seen == count:
            memory = _memory_mib()
            settled = memory if seen <= _SETTLED * count else settled
            most = max(most, memory)

    result = prepare(job, out, on_note=on_note)
    shares = {f"{stage}.share": share for stage, share in result.shares().items()}
    return {
        "notes_per_second": count / result.wall_seconds,
        "memory_growth_mib": most - settled,
        "index_bytes_per_note": result.stages["near_duplicates"]["index_bytes"] / count,
        "notes": float(count),
        "notes_written": float(sum(result.written.values())),
        "workers": float(workers),
        "processor_ms_per_note": 1000 * sum(result.seconds.values()) / count,
        "pieces_per_note": result.stages["tokenisation"]["pieces"] / count,
        **shares,
    }


def _memory_mib() -> float:
    """Return the resident memory of this process and its workers, MiB."""
    processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children() if child.pid)]
    return sum(_resident(process) for process in processes) / _MIB


def _resident(process: int) -> int:
    """Return the resident bytes of a process, 0 once it is gone."""
    try:
        pages = Path(f"/proc/{process}/statm").read_text("ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
