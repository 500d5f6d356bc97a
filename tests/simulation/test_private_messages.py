"""Everything that leaves a site under a private plan, held against an allow-list of names and forms."""

import contextlib
import re

import numpy as np
import pytest

from client.private_round import PrivateTraining
from client.site import Site
from common.errors import RoundError
from common.host import ModelHost
from common.records import ModelUpdate
from simulation.engine import simulate

PRIVATE = {
    "federation__rounds": 1,
    "privacy__q": 1.0,
    "privacy__steps": 1,
    "privacy__noise_multiplier": 1.0,
    "simulation__sites": 4,
}

HASH = re.compile(r"[0-9a-f]{64}")
CODES = (
    "refused",
    "refused-policy",
    "refused-ledger",
    "refused-protocol",
    "bad-message",
    "bad-data",
    "failed",
)


def equals(name):
    return lambda value, request: value == request.header[name]


def sized(least, most):
    """Bytes of secure aggregation: keys, sealed shares, signatures, all of a public size."""
    return lambda value, request: isinstance(value, bytes) and least <= len(value) <= most


def head(value, request):
    """The ledger's head: which ledger, how many entries, hash and signature; nothing that they say."""
    return (
        re.fullmatch(
            r'\{"v": 1, "ledger": "[0-9a-f]{32}", "sequence": \d+, "hash": "[0-9a-f]{64}", '
            r'"signature": "[0-9a-f]{128}"\}',
            value,
        )
        is not None
    )


ALLOWED = {
    "hello": {
        "site": lambda value, request: re.fullmatch(r"site-\d", value),
        "plan_hash": equals("plan_hash"),
    },
    "train": {
        "round": equals("round"),
        "model_hash": equals("model_hash"),
        "ledger_head": head,
        "advert": sized(64, 1000),
    },
    "share_keys": {"shares": sized(100, 2000)},
    "upload": {"round": equals("round"), "upload": sized(32, 1000)},
    "confirm": {"confirmation": sized(64, 1000)},
    "unmask": {"shares": sized(32, 2000)},
}
"""Header entries by stage, each with what it may be. A refusal carries a fixed code instead, alone."""

ARRAYS = {"upload": {"delta": np.float32, "masked": np.uint32}}
"""Arrays by stage. `delta` is noised; `masked` is the ring's vector, whose layout holds the delta alone."""


def leaks(exchanges, parameters):
    """Return what left and is not on the list, as `stage.name`."""
    found = []
    for request, reply in exchanges:
        if reply.refusal is not None:
            found += (
                [] if dict(reply.header) in [{"code": code} for code in CODES] else [f"{reply.kind}.code"]
            )
            continue
        allowed = ALLOWED[reply.kind]
        for name, value in reply.header.items():
            if name not in allowed or not allowed[name](value, request):
                found.append(f"{reply.kind}.{name}")
        for name, array in reply.arrays.items():
            if array.dtype != ARRAYS.get(reply.kind, {}).get(name) or array.shape != (parameters,):
                found.append(f"{reply.kind}.{name}")
    return sorted(set(found))


@pytest.fixture
def run(make_plan, make_data, tmp_path, monkeypatch):
    """A function that runs a private federation and returns every request with its reply."""

    def run_once(*, secure, patch=lambda: None):
        exchanges = []
        real = Site.handle
        monkeypatch.setattr(
            Site,
            "handle",
            lambda site, request: exchanges.append((request, real(site, request))) or exchanges[-1][1],
        )
        patch()
        plan = make_plan(**PRIVATE, secure_aggregation__enabled=secure, federation__minimum_cohort=3)
        host = ModelHost.build(plan, device="cpu")
        faults = ["drop:site-4@1/upload"] if secure else []
        # A planted leak may also be more than the server can use; what left has left.
        with contextlib.suppress(RoundError):
            simulate(plan, make_data(16), tmp_path / "run", host=host, faults=faults)
        return exchanges, host.layout.size

    return run_once


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "secure"])
def test_nothing_else_leaves_a_site(run, secure):
    exchanges, parameters = run(secure=secure)
    stages = {reply.kind for _, reply in exchanges if reply.refusal is None}
    expected = {"hello", "train", "upload"} | ({"share_keys", "confirm", "unmask"} if secure else set())
    assert stages == expected
    assert leaks(exchanges, parameters) == []


def test_a_planted_count_in_the_fields_is_found(run, monkeypatch):
    real = PrivateTraining._fit

    def leaky(self, *arguments):
        update = real(self, *arguments)
        count = np.array([len(arguments[1])], np.float32)
        return ModelUpdate(fields={**update.fields, "num_examples": count}, weight=update.weight)

    exchanges, parameters = run(
        secure=False, patch=lambda: monkeypatch.setattr(PrivateTraining, "_fit", leaky)
    )
    assert leaks(exchanges, parameters) == ["upload.num_examples"]


def test_a_planted_loss_in_the_header_is_found(run, monkeypatch):
    real = PrivateTraining.finish
    patch = lambda: monkeypatch.setattr(  # noqa: E731
        PrivateTraining, "finish", lambda self, *a: {**real(self, *a), "train_loss": 0.7}
    )
    exchanges, parameters = run(secure=True, patch=patch)
    assert leaks(exchanges, parameters) == ["train.train_loss"]


def test_a_planted_length_in_a_known_array_is_found(run, monkeypatch):
    real = PrivateTraining._fit

    def leaky(self, *arguments):
        update = real(self, *arguments)
        return ModelUpdate(fields={"delta": np.append(update.fields["delta"], np.float32(7))}, weight=1.0)

    exchanges, parameters = run(
        secure=False, patch=lambda: monkeypatch.setattr(PrivateTraining, "_fit", leaky)
    )
    assert leaks(exchanges, parameters) == ["upload.delta"]
