"""The shim starts light, relays every stage, and lets no exception's text out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.app.metadata import Metadata

from client.app import app as configured
from client.app import make_client_app
from common.errors import DataError, PolicyError
from common.flower import from_record_dict, message_type, to_record_dict
from common.messages import KINDS, TRAIN, UPLOAD, Envelope

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "peft", "opacus", "tokenizers")


def message(kind, content=None):
    metadata = Metadata(
        run_id=1,
        message_id="m1",
        src_node_id=1,
        dst_node_id=2,
        reply_to_message_id="",
        group_id="1",
        created_at=1e9,
        ttl=1e9,
        message_type=message_type(kind),
    )
    return Message(
        metadata=metadata, content=to_record_dict(Envelope(kind=kind)) if content is None else content
    )


def context(**node_config):
    return Context(run_id=1, node_id=2, node_config=node_config, state=RecordDict(), run_config={})


def ask(app, kind, content=None, **node_config):
    return app(message(kind, content), context(**node_config))


@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_reaches_the_handler_of_its_node(kind):
    seen = []

    def handler_of(node):
        seen.append(node.node_config["partition-id"])
        return lambda request: Envelope(
            kind=request.kind, header={"ok": 1}, arrays={"a": np.ones(2, np.float32)}
        )

    reply = ask(make_client_app(handler_of), kind, **{"partition-id": 7})
    answered = from_record_dict(reply.content)
    assert (answered.kind, answered.header["ok"], answered.arrays["a"].tolist()) == (kind, 1, [1, 1])
    assert seen == [7]


SECRET = "Mrs Example has gout"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError(SECRET), "bad-data"),
        (PolicyError(SECRET), "refused-policy"),
        (ValueError(SECRET), "failed"),
        (MemoryError(SECRET), "failed"),
        (UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET), "failed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
@pytest.mark.parametrize("kind", [TRAIN, UPLOAD, "hello"])
@pytest.mark.parametrize("where", ["handler", "lookup"])
def test_only_a_code_leaves(error, code, kind, where):
    def fails(*_):
        raise error

    app = make_client_app(fails if where == "lookup" else lambda _: fails)
    reply = ask(app, kind)
    assert not reply.has_error()
    answered = from_record_dict(reply.content)
    assert (answered.kind, dict(answered.header), dict(answered.arrays)) == (kind, {"code": code}, {})
    assert SECRET not in repr(reply.content)


def test_content_of_another_application_is_answered_with_a_code():
    def unreachable(_):
        raise AssertionError

    reply = ask(make_client_app(lambda _: unreachable), TRAIN, RecordDict({}))
    assert dict(from_record_dict(reply.content).header) == {"code": "bad-message"}


def test_a_supernode_without_a_site_answers_with_a_code():
    assert dict(from_record_dict(ask(configured, TRAIN).content).header) == {"code": "bad-input"}


def test_the_shim_imports_neither_torch_nor_transformers():
    code = (
        "import sys, client.app\n"
        f"found = sorted(m for m in sys.modules if m.split('.')[0] in {HEAVY!r})\n"
        "print(found)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]", ran.stdout
