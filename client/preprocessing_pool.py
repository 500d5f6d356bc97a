"""A recipe run by several processes: what works note by note in parallel, the rest in order, memory flat.

Notes go to the workers in chunks, a few chunks at a time, and come back in their order. Each worker makes its own
stages from the recipe; counts and seconds come back with every chunk and are summed.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice

from client.preprocessing import OnReject, Pipeline
from client.preprocessing_build import Recipe
from common.records import Note

_NOTES_PER_CHUNK = 32
_CHUNKS_PER_WORKER = 3
_FEWEST_FOR_A_POOL = 512
"""Starting processes takes seconds, which fewer notes do not repay."""

_pipeline: Pipeline | None = None
_rejects: list[tuple[str, str, str]] = []


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """What a worker made of a chunk: kept notes, rejects, and the worker's totals since it started."""

    worker: int
    notes: list[Note] = field(repr=False)
    rejects: list[tuple[str, str, str]]
    counts: Mapping[str, Mapping[str, int]]
    seconds: Mapping[str, float]


class PooledPipeline:
    """Runs notes through a recipe with several processes.

    Args:
        recipe: The stages.
        workers: Processes; 1 does everything in this one.
        strict: Stop at the first note that a stage rejects.
        on_reject: Receives each rejected note's id, the stage and the reason code.
    """

    def __init__(
        self, recipe: Recipe, *, workers: int = 1, strict: bool = False, on_reject: OnReject | None = None
    ) -> None:
        self._first, rest = recipe.split()
        self._names = [choice.name for choice in recipe.choices]
        self._workers = workers
        self._strict = strict
        self._on_reject = on_reject
        self._local: Pipeline | None = None
        self._ordered = Pipeline(rest.build(), strict=strict, on_reject=on_reject)
        self._totals: dict[int, _Chunk] = {}

    def run(self, notes: Iterable[Note]) -> Iterator[Note]:
        """Yield the notes that every stage kept, in their order."""
        source = iter(notes)
        start = list(islice(source, _FEWEST_FOR_A_POOL)) if self._workers > 1 else []
        if len(start) < _FEWEST_FOR_A_POOL or not self._first.choices:
            self._local = self._local or Pipeline(
                self._first.build(), strict=self._strict, on_reject=self._on_reject
            )
            yield from self._ordered.run(self._local.run(chain(start, source)))
            return
        yield from self._ordered.run(self._pooled(chain(start, source)))

    def counts(self) -> dict[str, dict[str, int]]:
        """Return what each stage changed, by stage and kind, in the order of the stages."""
        totals: dict[str, Counter[str]] = {name: Counter() for name in self._names}
        local = [] if self._local is None else [self._local.counts()]
        parts = [chunk.counts for chunk in self._totals.values()]
        for part in (*parts, *local, self._ordered.counts()):
            for stage, kinds in part.items():
                totals[stage].update(kinds)
        return {stage: dict(kinds) for stage, kinds in totals.items()}

    def seconds(self) -> dict[str, float]:
        """Return the processor time of each stage, summed over processes."""
        totals = dict.fromkeys(self._names, 0.0)
        local = [] if self._local is None else [self._local.seconds()]
        parts = [chunk.seconds for chunk in self._totals.values()]
        for part in (*parts, *local, self._ordered.seconds()):
            for stage, seconds in part.items():
                totals[stage] += seconds
        return totals

    def _pooled(self, notes: Iterator[Note]) -> Iterator[Note]:
        """Yield the notes that the workers kept."""
        # A forked child would inherit locks that other threads of this process hold.
        context = multiprocessing.get_context("spawn")
        waiting: deque[Future[_Chunk]] = deque()
        with ProcessPoolExecutor(
            self._workers, mp_context=context, initializer=_start, initargs=(self._first, self._strict)
        ) as pool:
            try:
                while chunk := list(islice(notes, _NOTES_PER_CHUNK)):
                    waiting.append(pool.submit(_work, chunk))
                    if len(waiting) >= _CHUNKS_PER_WORKER * self._workers:
                        yield from self._taken(waiting.popleft().result())
                while waiting:
                    yield from self._taken(waiting.popleft().result())
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _taken(self, chunk: _Chunk) -> list[Note]:
        """Take note of a chunk's rejects and totals, and return its notes."""
        self._totals[chunk.worker] = chunk
        for reject in chunk.rejects:
            if self._on_reject is not None:
                self._on_reject(*reject)
        return chunk.notes


def _start(recipe: Recipe, strict: bool) -> None:
    """Make a worker's stages."""
    global _pipeline
    _pipeline = Pipeline(recipe.build(), strict=strict, on_reject=lambda *reject: _rejects.append(reject))


def _work(notes: list[Note]) -> _Chunk:
    """Run a chunk through the worker's stages."""
    if _pipeline is None:
        raise RuntimeError("The worker was not started.")
    _rejects.clear()
    kept = list(_pipeline.run(notes))
    return _Chunk(
        worker=os.getpid(),
        notes=kept,
        rejects=list(_rejects),
        counts=_pipeline.counts(),
        seconds=_pipeline.seconds(),
    )
