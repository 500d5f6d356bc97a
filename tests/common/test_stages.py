"""What a site's list of stages does, the server's undoes on the sum."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from common.stages import DELTA, MEAN_STATISTICS, SUM_STATISTICS, Weighting, apply_stages, undo_stages


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 1.0), st.floats(-10, 10)), min_size=1, max_size=6))
def test_weighting_gives_the_weighted_mean(sites):
    weights = [weight for weight, _ in sites]
    sent = [
        apply_stages(
            [Weighting()],
            {DELTA: np.array([v], np.float32), "num_tokens": np.array([v], np.float32)},
            weight=w,
        )
        for w, v in sites
    ]
    total = {name: np.sum([fields[name] for fields in sent], axis=0) for name in sent[0]}
    opened = undo_stages([Weighting()], total, weights=weights)
    expected = np.average([v for _, v in sites], weights=weights)
    assert np.allclose(opened[DELTA], expected, atol=1e-4)
    assert np.allclose(opened["num_tokens"], sum(v for _, v in sites), atol=1e-4)


class Traced:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def apply(self, fields, *, weight):
        self.log.append(f"apply {self.name}")
        return fields

    def undo(self, total, *, weights):
        self.log.append(f"undo {self.name}")
        return total


def test_the_server_undoes_in_reverse():
    log: list[str] = []
    stages = [Traced("a", log), Traced("b", log)]
    apply_stages(stages, {}, weight=1.0)
    undo_stages(stages, {}, weights=[1.0])
    assert log == ["apply a", "apply b", "undo b", "undo a"]


def test_the_type_stays_float32():
    fields = apply_stages([Weighting()], {DELTA: np.ones(2, np.float32)}, weight=0.3)
    assert fields[DELTA].dtype == np.float32


def test_the_delta_is_no_statistic():
    assert DELTA not in (*SUM_STATISTICS, *MEAN_STATISTICS)
