"""A federation in one process: real clients, a real server, and a hand on every message between them."""

import os
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.round_guard import RoundGuard
from client.secure_aggregation import SecureAggregationClient
from common.quantization import FieldSpec, RingLayout
from common.records import ModelUpdate
from common.roster import Member, Roster
from common.secagg_parameters import AttemptContext, SecureAggregationParameters
from server.secure_aggregation import SecureAggregationServer

BOUND = 2**17 - 1
"""Bound and levels of the real field: its step is 1, so whole values encode exactly."""


class Federation:
    """Sites s000, s001, ... with identity keys, guards and whole-numbered updates."""

    def __init__(self, folder, sites, *, length=16, client_class=SecureAggregationClient, **parameters):
        self.folder, self.client_class = folder, client_class
        self.names = [f"s{number:03d}" for number in range(sites)]
        self.keys = {name: Ed25519PrivateKey.generate() for name in self.names}
        self.roster = Roster(
            tuple(
                Member(name=name, identity_key=key.public_key().public_bytes_raw())
                for name, key in self.keys.items()
            )
        )
        self.parameters = SecureAggregationParameters(**parameters)
        self.layout = RingLayout(
            fields=(
                FieldSpec(name="delta", size=length, bound=float(BOUND), levels=BOUND),
                FieldSpec.count("num_examples", bound=10_000),
            ),
            maximum_sites=max(sites, 2),
        )
        rng = np.random.default_rng(sites)
        self.updates = {
            name: ModelUpdate(
                fields={
                    "delta": rng.integers(-BOUND, BOUND, length, endpoint=True).astype(np.float32),
                    "num_examples": np.array([number + 1], np.float32),
                },
                weight=1.0,
            )
            for number, name in enumerate(self.names)
        }
        self.audit = defaultdict(list)

    def context(self, **changes):
        parts = {
            "plan_hash": b"p" * 32,
            "model_hash": b"m" * 32,
            "round": 1,
            "attempt": 1,
            "nonce": os.urandom(32),
            **changes,
        }
        parameters = parts.pop("parameters", self.parameters)
        return AttemptContext.of(parameters, self.layout, **parts)

    def client(self, name, context, **changes):
        parts = {
            "name": name,
            "identity_key": self.keys[name],
            "roster": self.roster,
            "parameters": self.parameters,
            "layout": self.layout,
            "context": context,
            "guard": RoundGuard(self.folder / name),
            "audit": lambda event, details: self.audit[name].append((event, dict(details))),
            **changes,
        }
        return self.client_class(**parts)

    def server(self, context):
        return SecureAggregationServer(
            roster=self.roster, parameters=self.parameters, layout=self.layout, context=context
        )

    def attempt(self, context=None, names=None):
        return Attempt(self, context or self.context(), names or self.names)

    def expected(self, survivors):
        total = np.zeros(self.layout.length, np.uint32)
        for name in survivors:
            total += self.layout.encode(self.updates[name].fields, weight=1.0)
        return total

    def refusals(self, name):
        return [details["reason"] for event, details in self.audit[name] if event.endswith("refused")]


class Attempt:
    """One attempt, driven stage by stage; each step returns what the server sends next."""

    def __init__(self, federation, context, names):
        self.federation, self.context = federation, context
        self.server = federation.server(context)
        self.clients = {name: federation.client(name, context) for name in names}
        self.vectors = {}

    def adverts(self, lost=()):
        for name in self._active(lost):
            self.server.add_advert(name, self.clients[name].advertise())
        return self.server.close_adverts()

    def deliveries(self, lost=(), adverts=None):
        adverts = adverts or self.adverts()
        for name in self._active(lost):
            self.server.add_shares(name, self.clients[name].share_keys(adverts))
        return self.server.close_shares()

    def confirm_request(self, lost=(), deliveries=None):
        deliveries = deliveries or self.deliveries()
        for name in self._active(lost):
            header, vector = self.clients[name].upload(deliveries[name], self.federation.updates[name])
            self.vectors[name] = vector
            self.server.add_upload(name, header, vector)
        return self.server.close_uploads()

    def unmask_request(self, lost=(), confirm_request=None):
        request = confirm_request or self.confirm_request()
        for name in self._active(lost):
            self.server.add_confirmation(name, self.clients[name].confirm(request))
        return self.server.close_confirmations()

    def finish(self, lost=(), unmask_request=None, threads=1):
        request = unmask_request or self.unmask_request()
        for name in self._active(lost):
            self.server.add_unmask(name, self.clients[name].unmask(request))
        return self.server.finish(threads=threads)

    def run(self, *, advertise=(), share_keys=(), upload=(), confirm=(), unmask=()):
        """The whole attempt, with the named sites lost at the named stages."""
        adverts = self.adverts(advertise)
        deliveries = self.deliveries(share_keys, adverts)
        request = self.confirm_request(upload, deliveries)
        request = self.unmask_request(confirm, request)
        return self.finish(unmask, request)

    def _active(self, lost):
        for name in lost:
            self.clients.pop(name, None)
        return list(self.clients)


@pytest.fixture(scope="session")
def make_federation():
    """Returns `make(sites, **parameters)`; every federation has a folder of its own.

    Guards flush to disk at every answer; in memory that costs nothing (the guard's own tests use a disk).
    """
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as base:
        yield lambda sites, **changes: Federation(Path(tempfile.mkdtemp(dir=base)), sites, **changes)
