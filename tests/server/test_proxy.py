"""The proxy lets the Fleet paths through and nothing else: nginx itself, in front of a server that keeps a list."""

from __future__ import annotations

import http.client
import shutil
import socket
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from common.errors import InputError
from server.pki import init_pki
from server.proxy import FLEET_PATHS, Proxy, require_nginx

needs_nginx = pytest.mark.skipif(
    shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None, reason="nginx is not installed"
)

# How a client might dress up a path so that the proxy and the server behind it read it differently.
DISGUISES = (
    "/v1/fleet/../control/start-run",
    "/v1/control/start-run/../../fleet/pull-messages",
    "/v1/fleet/%2e%2e/control/start-run",
    "/v1/fleet%2fregister-node",
    "//v1//control//start-run",
    "/v1/control/start-run?/v1/fleet/pull-messages",
    "/v1/control/start-run#/../../fleet/pull-messages",
    "/v1/control/start-run;/v1/fleet/pull-messages",
    "/V1/CONTROL/START-RUN",
    "/v1/fleet/pull-messages/../../control/start-run",
)


def superlink_paths() -> set[tuple[str, str]]:
    """Every method and path of Flower's own SuperLink."""
    from fastapi.routing import iter_route_contexts
    from flwr.superlink.main import create_app

    return {
        (method, context.path)
        for context in iter_route_contexts(create_app().routes)
        if context.path
        for method in (getattr(context, "methods", None) or {"GET"})
    }


class Upstream:
    """A TLS server on loopback that keeps the requests it gets."""

    def __init__(self, pki):
        self.seen: list[tuple[str, str]] = []
        self.status = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                self.rfile.read(int(self.headers.get("content-length", 0)))
                outer.seen.append((self.command, self.path))
                self.send_response(outer.status)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            do_GET = do_PUT = do_DELETE = do_POST  # noqa: N815 - the names of http.server

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki / "superlink.pem", pki / "superlink.key")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def port(self):
        return self.server.server_address[1]


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fed")
    init_pki(folder, ["localhost", "127.0.0.1"])
    return folder


@pytest.fixture
def serve(pki, tmp_path):
    """A function that starts upstream and proxy, and returns the upstream and a way to ask the proxy."""
    stops = []

    def start(paths=FLEET_PATHS, behind=None):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        upstream = Upstream(behind or pki)
        folder = tmp_path / f"proxy-{len(stops)}"
        proxy = Proxy(
            listen=f"127.0.0.1:{port}", superlink_port=upstream.port, pki=pki, folder=folder, paths=paths
        )
        process = subprocess.Popen(proxy.prepare(), stderr=subprocess.DEVNULL)
        stops.append(
            lambda: (
                process.terminate(),
                process.wait(10),
                upstream.server.shutdown(),
                upstream.server.server_close(),
            )
        )
        context = ssl.create_default_context(cafile=str(pki / "ca.pem"))

        def ask(method, path, body=b"{}"):
            connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=10)
            try:
                connection.request(method, path, body=body if method == "POST" else None)
                return connection.getresponse().status
            finally:
                connection.close()

        for _ in range(100):
            try:
                ask("GET", "/")
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        upstream.seen.clear()
        return proxy, upstream, ask

    yield start
    for stop in stops:
        stop()


def refused_paths(upstream, ask):
    """Ask for everything that is no site's business; return what reached the server behind all the same."""
    for method, path in sorted(superlink_paths()):
        if path not in FLEET_PATHS:
            assert ask(method, path) in (403, 404, 405), (method, path)
    for path in DISGUISES:
        assert ask("POST", path) in (200, 400, 403, 404), path
    return [one for one in upstream.seen if one not in [("POST", path) for path in FLEET_PATHS]]


@needs_nginx
def test_fleet_goes_through_and_nothing_else(serve):
    proxy, upstream, ask = serve()
    assert {ask("POST", path) for path in FLEET_PATHS} == {200}
    assert upstream.seen == [("POST", path) for path in FLEET_PATHS]
    assert ask("GET", FLEET_PATHS[0]) == 403
    assert refused_paths(upstream, ask) == []
    assert '"path":"/v1/control/start-run"' in proxy.access_log.read_text()


@needs_nginx
@pytest.mark.parametrize(("status", "told"), [(500, 503), (403, 403), (401, 401), (409, 409), (503, 503)])
def test_a_failure_of_the_superlink_is_told_as_one_that_passes(serve, status, told):
    """A SuperNode that is answered 500 once never asks again, and asks again after 503; other answers stay."""
    _, upstream, ask = serve()
    upstream.status = status
    assert ask("POST", FLEET_PATHS[0]) == told
    upstream.status = 200
    assert ask("POST", FLEET_PATHS[0]) == 200


def test_a_supernode_asks_again_after_503_and_not_after_500():
    from flwr.supercore.retry import http_retry

    assert 503 in http_retry._RETRYABLE_STATUS_CODES
    assert 500 not in http_retry._RETRYABLE_STATUS_CODES, "The proxy's rule for 500 can go."


@needs_nginx
def test_a_path_that_is_opened_is_found(serve):
    _, upstream, ask = serve(paths=(*FLEET_PATHS, "/v1/control/start-run"))
    with pytest.raises(AssertionError, match="start-run"):
        refused_paths(upstream, ask)


def test_the_paths_are_those_that_a_supernode_asks_for():
    from flwr.supernode import fleet_http_client

    source = Path(fleet_http_client.__file__).read_text("utf-8")
    asked = {line.split('"')[1] for line in source.splitlines() if 'path="/v1/fleet/' in line}
    assert asked - set(FLEET_PATHS) == {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}
    assert set(FLEET_PATHS) <= asked


@needs_nginx
def test_a_superlink_of_another_authority_is_not_believed(serve, tmp_path):
    other = tmp_path / "other"
    init_pki(other, ["localhost"])
    _, upstream, ask = serve(behind=other)
    assert ask("POST", FLEET_PATHS[0]) == 502
    assert upstream.seen == []


@needs_nginx
def test_a_site_that_trusts_another_authority_does_not_connect(serve, tmp_path):
    other = tmp_path / "other"
    init_pki(other, ["localhost"])
    proxy, _, _ = serve()
    context = ssl.create_default_context(cafile=str(other / "ca.pem"))
    port = int(proxy.listen.rpartition(":")[2])
    connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=10)
    with pytest.raises(ssl.SSLCertVerificationError):
        connection.request("POST", FLEET_PATHS[0])


@needs_nginx
def test_a_request_that_is_too_large_is_refused(serve):
    _, upstream, ask = serve()
    assert ask("POST", "/v1/fleet/push-object", body=bytes(6 << 20)) == 200
    upstream.seen.clear()
    assert ask("POST", "/v1/fleet/push-object", body=bytes(17 << 20)) == 413
    assert upstream.seen == []


def test_without_nginx_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(InputError, match="nginx is not installed; install it .*nginx-light"):
        require_nginx()


@pytest.mark.parametrize("name", ["with space", "a;b", "{x}", "$x", 'q"'])
def test_a_path_that_would_end_a_directive_is_refused(tmp_path, name):
    proxy = Proxy(listen="127.0.0.1:1", superlink_port=2, pki=tmp_path / name, folder=tmp_path)
    with pytest.raises(InputError, match="cannot hold"):
        proxy.render()
