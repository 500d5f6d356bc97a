"""The Flower ClientApp: a thin shim that hands each message to the site and its answer back.

It imports neither torch nor transformers. Flower would send an exception's text to the server, so the shim
catches everything and answers with a typed code only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

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
    app = ClientApp()

    def relay(message: Message, context: Context) -> Message:
        return _relay(message, lambda envelope: handler_of(context)(envelope))

    app.query("hello")(relay)
    app.train()(relay)
    for stage in STAGES:
        if stage != TRAIN:
            app.train(stage)(relay)
    return app


def _relay(message: Message, handler: Handler) -> Message:
    """Answer one message; whatever goes wrong becomes a fixed code."""
    kind = message.metadata.message_type.rpartition(".")[2]
    try:
        reply = handler(from_record_dict(message.content))
    except FedwardError as error:
        _log.warning("%s was not answered: %s", kind, error)
        reply = refusal_of(kind, error.code)
    except Exception:
        # The text stays here: it could quote a record.
        _log.exception("%s failed", kind)
        reply = refusal_of(kind, "failed")
    return Message(to_record_dict(reply), reply_to=message)


def _configured_site(context: Context) -> Handler:
    """Open the site that the SuperNode's `--node-config` names."""
    path = context.node_config.get("site")
    if not isinstance(path, str):
        raise InputError(
            "The SuperNode has no site; start it with --node-config 'site=\"path/to/site.toml\"'."
        )
    plan = str(context.run_config.get("plan", ""))
    return lambda request: _answer(str(path), plan, request)


def _answer(path: str, plan: str, request: Envelope) -> Envelope:
    """Answer one request; only what needs the model opens the site."""
    from client.settings import introduce, open_site

    if request.kind == HELLO:
        return introduce(path, plan)
    return open_site(path, plan).handle(request)


app = make_client_app(_configured_site)
