"""Refused connections, told to the side that can mend them."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common.enrolment import supernode_key_text
from server.refusals import AHEAD, BEHIND, RefusalLog, explain

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def key():
    return ec.generate_private_key(ec.SECP384R1()).public_key()


def entry(key=None, *, status=401, seconds=0.0, path="/v1/fleet/pull-messages"):
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) if key else b""
    return {
        "time": NOW.isoformat(),
        "from": "10.0.0.3",
        "method": "POST",
        "path": path,
        "status": status,
        "key": base64.b64encode(pem).decode(),
        "signed_at": (NOW - timedelta(seconds=seconds)).isoformat(),
    }


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(412, "The clock of st-mary is 412 s behind"), (-60, "The clock of st-mary is 60 s ahead of"), (10, "")],
)
def test_a_wrong_clock_is_told_from_a_wrong_key(key, seconds, told):
    _, sentence = explain(entry(key, seconds=seconds), {supernode_key_text(key): "st-mary"})
    assert sentence.startswith(told)
    assert bool(sentence) == bool(told)


def test_the_bounds_are_flowers():
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

    assert (AHEAD, BEHIND) == (SYSTEM_TIME_TOLERANCE, SYSTEM_TIME_TOLERANCE + TIMESTAMP_TOLERANCE)


def test_what_else_is_told(key):
    assert "not enrolled in this roster" in explain(entry(key, status=404), {})[1]
    assert "not open to sites" in explain(entry(status=404, path="/v1/control/start-run"), {})[1]
    assert "too large" in explain(entry(status=413), {})[1]
    assert explain(entry(key, status=502), {}) == ("", "")
    assert explain({}, {}) == ("", "")
    assert explain(entry() | {"key": "%%%", "signed_at": "never", "time": 3}, {})[1]


def test_each_is_told_once_and_torn_lines_are_waited_for(key, tmp_path):
    path = tmp_path / "access.jsonl"
    path.write_text("an earlier server's line\n")
    log = RefusalLog(path, {supernode_key_text(key): "st-mary"})
    line = json.dumps(entry(key, seconds=412))
    with path.open("a") as file:
        file.write(f"{line}\n{line}\nnot json\n{line[:30]}")
    assert len(log.news()) == 1
    with path.open("a") as file:
        file.write(f"{line[30:]}\n{json.dumps(entry(status=404, path='/v1/control/x'))}\n")
    assert [sentence[:8] for sentence in log.news()] == ["10.0.0.3"]
    assert log.news() == []
    assert RefusalLog(tmp_path / "none", {}).news() == []
