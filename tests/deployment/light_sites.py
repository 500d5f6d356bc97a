"""Sites of a test as one process: each a thread that speaks Flower's Fleet API as a SuperNode does.

The connection, TLS, keys and messages are Flower's own; what is left out is a new process for each message, which
would spend most of a test's time on imports. A file in a site's folder changes what it does from then on:
`silent` takes messages and never answers, `absent` connects to nobody until it is removed, `broken` answers with
no more than the first object of a reply.

Usage: python light_sites.py ADDRESS CA SITE_FOLDER...
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.supernode.fleet_http_connection import http_request_response

from client.opening import open_site
from client.settings import read_settings
from client.site import Site
from common.errors import FedwardError
from common.flower import from_record_dict, to_record_dict
from common.messages import refusal_of

POLL_SECONDS = 0.25


def answer(site: Site, content: RecordDict) -> RecordDict:
    """Return a site's reply; whatever goes wrong becomes a code, as in the ClientApp."""
    request = from_record_dict(content)
    try:
        reply = site.handle(request)
    except FedwardError as error:
        print(f"{site.name}: {request.kind}: {error}", flush=True)
        reply = refusal_of(request.kind, error.code)
    return to_record_dict(reply)


def receive(connection: Any) -> Message | None:
    """Pull one message with its content."""
    _, pull, _, _, _, pull_object, _, confirm = connection
    found = pull()
    if found is None:
        return None
    message, tree = found
    run_id = message.metadata.run_id
    ids = [one.object_id for one in iterate_object_tree(tree)]
    contents = pull_objects(ids, pull_object_fn=lambda one: pull_object(run_id, one))
    confirm(run_id, message.metadata.message_id)
    whole = inflate_object_from_contents(message.metadata.message_id, contents)
    whole.metadata.__dict__["_message_id"] = message.metadata.message_id
    return whole


def reply_to(connection: Any, message: Message, content: RecordDict, *, broken: bool) -> None:
    """Push a reply, or no more than its first object."""
    _, _, send, _, _, _, push_object, _ = connection
    reply = Message(content, reply_to=message)
    with no_object_id_recompute():
        reply.metadata.__dict__["_message_id"] = reply.object_id
        tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
        wanted, session = send(remove_content_from_message(reply), tree, 0.0)
        for object_id in list(wanted)[: 1 if broken else None]:
            push_object(message.metadata.run_id, session, object_id, objects[object_id].deflate())


def be_site(address: str, authority: str, folder: Path) -> None:
    """Be one site from start to end: as an agent does, it keeps its state when the connection is lost."""
    while (folder / "absent").exists():
        time.sleep(POLL_SECONDS)
    # Before it connects, so that no deadline of a test is spent on importing torch.
    with open_site(read_settings(folder / "site.toml")) as site:
        keep(lambda: serve(address, authority, folder, site), folder.name)


def serve(address: str, authority: str, folder: Path, site: Site) -> None:
    """Connect, and answer until the connection is lost."""
    key = load_ssh_private_key((folder / "supernode.key").read_bytes(), None)
    with http_request_response(address, False, authority, (key, key.public_key())) as connection:
        print(f"{folder.name}: connected", flush=True)
        while True:
            step(connection, folder, site)


def step(connection: Any, folder: Path, site: Site) -> None:
    """Take one message, if there is one, and answer it."""
    message = receive(connection)
    if message is None:
        time.sleep(POLL_SECONDS)
        return
    print(f"{folder.name}: {message.metadata.message_type}", flush=True)
    if (folder / "silent").exists():
        return
    content = answer(site, message.content)
    reply_to(connection, message, content, broken=(folder / "broken").exists())


def keep(run: Callable[[], None], name: str) -> None:
    """Run again and again, whatever ends it, as a SuperNode's service manager would."""
    while True:
        try:
            run()
        except BaseException as error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            time.sleep(1.0)


def main(address: str, authority: str, folders: list[Path]) -> None:
    """Run all sites until the process is ended."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    threads = [
        threading.Thread(target=be_site, args=(address, authority, folder), daemon=True) for folder in folders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], [Path(name) for name in sys.argv[3:]])
