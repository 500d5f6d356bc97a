"""A single site that the server's tests can talk to."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.host import ModelHost
from common.messages import TRAIN, Envelope
from common.parameters import vector_hash


class AskedSite:
    """The first site of a federation, with a shorthand for `train`."""

    def __init__(self, plan: Any, data: Any, folder: Path) -> None:
        from simulation.engine import federate, make_sites
        from simulation.watch import RunWatch

        self.federation = federate(plan, data.train)
        self.host = ModelHost.build(self.federation.plan)
        self.vector = self.host.read()
        self.folder = folder / "site-1"
        self.site = make_sites(self.federation, self.host, folder, RunWatch.silent(1))["site-1"]

    def ask_to_train(
        self, *, run_id: str, attempt: int, model_hash: str | None = None, plan_hash: str | None = None
    ) -> Envelope:
        """Ask the site to train round 1 from the first model."""
        header = {
            "plan_hash": plan_hash or self.federation.plan.hash,
            "run_id": run_id,
            "round": 1,
            "attempt": attempt,
            "nonce": secrets.token_bytes(32),
            "model_hash": model_hash or vector_hash(self.vector),
        }
        return self.site.handle(Envelope(kind=TRAIN, header=header, arrays={"model": self.vector}))


@pytest.fixture
def make_site(tmp_path: Path) -> Callable[[Any, Any], AskedSite]:
    """A function that makes the first site of a plan over a data set."""
    return lambda plan, data: AskedSite(plan, data, tmp_path / "sites")
