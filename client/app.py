"""The Flower ClientApp: a thin relay that hands each message to the site's agent and its answer back.

Flower starts a new process for each message, so this imports neither torch nor transformers, and holds no data:
records, keys and ledger are the agent's, another process and, where the site is set up for it, another user.
Flower would send an exception's text to the server, so the relay catches everything and answers with a typed code.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.agent_socket import AGENT_SOCKET
from common.errors import FedwardError, InputError
from common.flower import from_record_dict, to_record_dict
from common.messages import HELLO, STAGES, TRAIN, Envelope, refusal_of

Handler = Callable[[Envelope], Envelope]

_log = logging.getLogger(__name__)


def make_client_app(handler_of: Callable[[Context], Handler]) -> ClientApp:
    """Make a ClientApp that relays every stage to the handler of the node at hand.

    Args:
        handler_of: Returns the site behind a node; called for each message.
    """
    return _relaying(lambda message, context: handler_of(context)(from_record_dict(message.content)))


def _relaying(answer: Callable[[Message, Context], Envelope]) -> ClientApp:
    """Make a ClientApp that answers every stage with `answer`."""
    app = ClientApp()

    def relay(message: Message, context: Context) -> Message:
        return Message(to_record_dict(_answer(message, context, answer)), reply_to=message)

    app.query(HELLO)(relay)
    app.train()(relay)
    for stage in STAGES:
        if stage != TRAIN:
            app.train(stage)(relay)
    return app


def _answer(message: Message, context: Context, answer: Callable[[Message, Context], Envelope]) -> Envelope:
    """Answer one message; whatever goes wrong becomes a fixed code."""
    kind = message.metadata.message_type.rpartition(".")[2]
    try:
        return answer(message, context)
    except FedwardError as error:
        _log.warning("%s was not answered: %s", kind, error)
        return refusal_of(kind, error.code)
    except Exception:
        # The text stays here: it could quote a record.
        _log.exception("%s failed", kind)
        return refusal_of(kind, "failed")


def _ask_agent(message: Message, context: Context) -> Envelope:
    """Hand a message to the agent whose socket the SuperNode's `--node-config` names."""
    from client.agent_client import ask_agent

    path = context.node_config.get(AGENT_SOCKET)
    if not isinstance(path, str) or not path:
        raise InputError(
            "The SuperNode names no agent; start it with `fedward-site run`, or with --node-config "
            f"'{AGENT_SOCKET}=\"/path/to/agent.sock\"'."
        )
    # After its time to live nobody reads the answer; what the agent has finished by then waits in its spool.
    return ask_agent(Path(path), from_record_dict(message.content), timeout=message.metadata.ttl)


app = _relaying(_ask_agent)
