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

from client.agent import AgentSettings, SiteAgent
from client.app import app as configured
from client.app import make_client_app
from common.errors import AgentError, DataError, PolicyError
from common.flower import from_record_dict, message_type, to_record_dict
from common.messages import KINDS, TRAIN, UPLOAD, Envelope

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "peft", "opacus", "tokenizers", "scipy", "safetensors", "client.site")


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


def test_a_supernode_that_names_no_agent_answers_with_a_code(caplog):
    assert dict(from_record_dict(ask(configured, TRAIN).content).header) == {"code": "bad-input"}
    assert "fedward-site run" in caplog.text


def test_an_agent_that_is_not_running_is_one_code_and_one_clear_sentence(tmp_path, caplog):
    socket = tmp_path / "agent.sock"
    reply = ask(configured, TRAIN, **{"agent-socket": str(socket)})
    assert dict(from_record_dict(reply.content).header) == {"code": AgentError.code}
    assert f"{socket}: the agent did not answer" in caplog.text
    assert "start the agent with `fedward-site run`" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_reaches_the_agent_and_its_answer_comes_back(tmp_path, kind):
    class Site:
        name = "st-mary"

        def handle(self, request):
            return Envelope(kind=request.kind, header={"ok": 1}, arrays={"a": np.ones(2, np.float32)})

    settings = AgentSettings(socket=tmp_path / "run" / "agent.sock", uids={os.geteuid()})
    agent = SiteAgent(Site(), parameters=2, settings=settings)
    try:
        reply = ask(configured, kind, **{"agent-socket": str(settings.socket)})
    finally:
        agent.stop(seconds=5)
    answered = from_record_dict(reply.content)
    assert (answered.kind, answered.header["ok"], answered.arrays["a"].tolist()) == (kind, 1, [1, 1])


def test_the_relay_waits_no_longer_than_the_message_lives(monkeypatch):
    waited = []
    monkeypatch.setattr(
        "client.agent_client.ask_agent",
        lambda path, request, timeout: waited.append(timeout) or Envelope(kind=request.kind),
    )
    ask(configured, TRAIN, **{"agent-socket": "a.sock"})
    assert waited == [1e9]


def test_the_shim_imports_neither_torch_nor_transformers():
    code = (
        # What a message takes, an answer excepted: no agent is there.
        "import sys, client.app, client.agent_client\n"
        "from pathlib import Path\n"
        "from common.errors import AgentError\n"
        "from common.messages import Envelope\n"
        "try: client.agent_client.ask_agent(Path('none.sock'), Envelope(kind='hello'), timeout=5)\n"
        "except AgentError: pass\n"
        f"found = sorted(m for m in sys.modules if m.split('.')[0] in {HEAVY!r} or m in {HEAVY!r})\n"
        "print(found)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]", ran.stdout
