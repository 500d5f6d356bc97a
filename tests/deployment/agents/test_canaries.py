"""Planted strings of the records appear in no log, metric, answer, spool file or byte on the socket."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import threading
import urllib.request

import numpy as np
import pytest

from client.agent_client import ask_agent
from common.host import ModelHost
from common.messages import HELLO, SHARE_KEYS, TRAIN, Envelope
from common.parameters import vector_hash
from common.plan import read_plan
from simulation.local_federation import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.deployment]

CANARY = "zqcanary"


class Tap:
    """A socket in front of the agent's that keeps every byte of both directions."""

    def __init__(self, path, behind):
        self.path, self._behind, self.heard = path, behind, bytearray()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._open = [self._listener]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self):
        while True:
            try:
                outer, _ = self._listener.accept()
            except OSError:
                return
            inner = socket.socket(socket.AF_UNIX)
            inner.connect(str(self._behind))
            self._open += [outer, inner]
            for pair in ((outer, inner), (inner, outer)):
                self._threads.append(threading.Thread(target=self._copy, args=pair, daemon=True))
                self._threads[-1].start()

    def _copy(self, source, sink):
        try:
            while data := source.recv(1 << 16):
                self.heard += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=10)
        for one in self._open:
            one.close()


def with_canaries(data):
    """Return the data with a canary in every training note's text."""
    notes = tuple(
        dataclasses.replace(note, text=f"{note.text} {CANARY}{i}") for i, note in enumerate(data.train)
    )
    return dataclasses.replace(data, train=notes)


@pytest.mark.parametrize("fault", [None, "quote:record"])
def test_no_canary_leaves_the_records(nursery, make_sites, make_data, tmp_path, fault):
    (port,) = free_ports(1)
    agent = {"metrics_port": port, "log": "agent.log"}
    (site, *_) = make_sites(
        3, agent=agent, data=with_canaries(make_data(36)), federation__rounds=2, privacy__steps=4
    )
    assert CANARY in (site / "data" / "train.jsonl").read_text("utf-8")
    pid = nursery.start(site, fault)
    tap = Tap(tmp_path / "tap.sock", site / "run" / "agent.sock")
    plan = read_plan(site.parent / "plan.toml")
    model = np.zeros(ModelHost.build(plan).layout.size, dtype=np.float32)
    common = {"plan_hash": plan.hash, "run_id": "run1", "round": 1, "model_hash": vector_hash(model)}
    train = Envelope(
        kind=TRAIN, header={**common, "attempt": 1, "nonce": os.urandom(32)}, arrays={"model": model}
    )
    requests = [
        Envelope(kind=HELLO),
        train,
        Envelope(kind=SHARE_KEYS, header={**common, "adverts": CANARY.encode()[::-1]}),
        Envelope(kind=SHARE_KEYS),
    ]
    answers = [ask_agent(tap.path, request, timeout=120) for request in requests]
    assert [answer.refusal for answer in answers[2:]] != [None, None]
    assert answers[1].refusal == (None if fault is None else "failed")
    metrics = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read()
    os.kill(pid, signal.SIGTERM)
    tap.close()
    kept = {
        path.relative_to(site): path.read_bytes()
        for path in site.rglob("*")
        if path.is_file() and path.parts[len(site.parts)] != "data"
    }
    assert any(path.suffix == ".update" for path in kept) is (fault is None)
    log = nursery.log(site).read_bytes()
    heard = bytes(tap.heard)
    assert b"train" in heard
    assert b"fedward_site_requests" in metrics
    if fault is not None:
        # The failure itself is told, with its place.
        assert b"ValueError" in kept[(site / "agent.log").relative_to(site)]
    for name, content in {**kept, "stderr": log, "socket": heard, "metrics": metrics}.items():
        assert CANARY.encode() not in content, name
