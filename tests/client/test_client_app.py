"""The ClientApp: whatever goes wrong becomes a fixed code, and hello needs neither torch nor records."""

import subprocess
import sys

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.app.metadata import Metadata

from client.app import app, make_client_app
from common.errors import LedgerError
from common.flower import from_record_dict, message_type, to_record_dict
from common.messages import HELLO, KINDS, TRAIN, Envelope

SECRET = "Maria Huber, gout"


def context(**node_config: object) -> Context:
    return Context(run_id=1, node_id=2, node_config=dict(node_config), state=RecordDict(), run_config={})


def message(kind: str) -> Message:
    metadata = Metadata(
        run_id=1,
        message_id="m",
        src_node_id=1,
        dst_node_id=2,
        reply_to_message_id="",
        group_id="1",
        created_at=0.0,
        ttl=1e12,
        message_type=message_type(kind),
    )
    return Message(metadata=metadata, content=to_record_dict(Envelope(kind=kind)))


def answer(client_app, kind: str, where: Context) -> Envelope:
    return from_record_dict(client_app(message(kind), where).content)


@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_reaches_the_handler(kind):
    seen = []

    def handler(request):
        seen.append(request.kind)
        return Envelope(kind=kind, header={"ok": True})

    assert answer(make_client_app(lambda where: handler), kind, context()).header == {"ok": True}
    assert seen == [kind]


@pytest.mark.parametrize(
    ("error", "code"), [(LedgerError(SECRET), "refused-ledger"), (ValueError(SECRET), "failed")]
)
def test_an_error_is_answered_with_its_code_alone(error, code):
    def handler(request):
        raise error

    reply = make_client_app(lambda where: handler)(message(TRAIN), context())
    assert not reply.has_error()
    assert from_record_dict(reply.content).refusal == code
    assert SECRET.encode() not in repr(reply.content).encode()


def test_a_node_without_a_site_is_told_by_a_code():
    assert answer(app, HELLO, context()).refusal == "bad-input"
    assert answer(app, TRAIN, context(site="nowhere/site.toml")).refusal == "bad-input"


def test_hello_and_the_shim_start_without_torch():
    """Flower starts a process for each message, and a node must say who it is within seconds."""
    script = (
        "import sys, client.app, client.settings\n"
        "heavy = {'torch', 'transformers', 'opacus', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)
