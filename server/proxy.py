"""The TLS proxy in front of the SuperLink: nginx with a configuration of ours that lets the Fleet paths through alone.

In Flower 1.42 the Fleet, Control and Runtime APIs share one port, and Control is open to whoever reaches it:
it could ship code to every site. The SuperLink therefore listens on loopback, and sites reach the proxy.

Formal guarantees
-----------------
A request reaches the SuperLink only if its method is POST and its path is, letter for letter after nginx's
own normalisation, one of `FLEET_PATHS`; the path sent on is the constant of that rule, never the client's
text. Registering a node is not among them, so that a SuperNode's key comes in through `enrol accept` alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import InputError
from common.files import write_atomically

FLEET_PATHS: Final = tuple(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
"""What a SuperNode with a registered key asks for (flwr 1.42, supernode/fleet_http_client.py)."""

ACCESS_LOG: Final = "access.jsonl"

_BODY_MEBIBYTES = 16
"""Flower cuts arrays into objects of 5 MiB, so nothing larger is honest."""

_INSTALL = (
    "nginx is not installed; install it (Debian and Ubuntu: 'apt-get install nginx-light') and see that its own "
    "service is off ('systemctl disable --now nginx')."
)

# Every byte that a client chose is JSON-escaped in the log. The signed time tells a wrong clock from a wrong key.
_TEMPLATE = """\
# Written anew by fedward-server at every start; changes are lost.
daemon off;
{user}worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 4096; }}
http {{
  server_tokens off;
  default_type application/octet-stream;
  log_format fedward escape=json '{{"time":"$time_iso8601","from":"$remote_addr","method":"$request_method",'
    '"path":"$uri","status":$status,"received":$request_length,"sent":$bytes_sent,"seconds":$request_time,'
    '"key":"$http_flwr_public_key","signed_at":"$http_flwr_timestamp"}}';
  access_log {folder}/{access_log} fedward if=$refused;
  map $status $refused {{ ~^[23] 0; default 1; }}
  client_body_temp_path {folder}/tmp/body;
  proxy_temp_path {folder}/tmp/proxy;
  fastcgi_temp_path {folder}/tmp/fastcgi;
  uwsgi_temp_path {folder}/tmp/uwsgi;
  scgi_temp_path {folder}/tmp/scgi;

  upstream superlink {{
    server 127.0.0.1:{superlink_port};
    keepalive 32;
  }}
  server {{
    listen {listen} ssl;
    ssl_certificate {pki}/proxy.pem;
    ssl_certificate_key {pki}/proxy.key;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_tickets off;

    # One object is at most 5 MiB; a site that sends half of one is let go after a minute.
    client_max_body_size {body}m;
    client_body_buffer_size 1m;
    client_body_timeout 60s;
    client_header_timeout 20s;
    send_timeout 60s;
    keepalive_timeout 75s;
    keepalive_requests 100000;

    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Host 127.0.0.1;
    proxy_connect_timeout 5s;
    proxy_send_timeout 60s;
    proxy_read_timeout 300s;
    proxy_buffers 32 64k;
    proxy_ssl_verify on;
    # nginx matches names alone, not addresses.
    proxy_ssl_name localhost;
    proxy_ssl_trusted_certificate {pki}/ca.pem;
    proxy_ssl_session_reuse on;

    # A SuperNode that is answered 500 once never asks again (flwr 1.42); after 503 it does.
    proxy_intercept_errors on;
    error_page 500 = @again;
    location @again {{ return 503; }}

{locations}
    location / {{ return 404; }}
  }}
}}
"""

_LOCATION = """\
    location = {path} {{
      limit_except POST {{ deny all; }}
      proxy_pass https://superlink{path};
    }}"""


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """The proxy of one server.

    Attributes:
        listen: Address and port for sites.
        superlink_port: The SuperLink's port on loopback.
        pki: The folder with the certificates.
        folder: The proxy's own folder: configuration, logs, temporary files.
        paths: What is let through.
    """

    listen: str
    superlink_port: int
    pki: Path
    folder: Path
    paths: tuple[str, ...] = FLEET_PATHS

    @property
    def config(self) -> Path:
        """Where its configuration is."""
        return self.folder / "nginx.conf"

    @property
    def access_log(self) -> Path:
        """Where requests are logged that were refused or failed, one JSON object a line."""
        return self.folder / ACCESS_LOG

    def render(self) -> str:
        """Return the configuration.

        Raises:
            InputError: A path could end a string of the configuration.
        """
        for path in (self.pki, self.folder):
            if not str(path).isprintable() or set(str(path)) & set("'\"{};$\\ "):
                raise InputError(
                    f"The path {str(path)!r} holds a space or one of '\"{{}};$\\, which nginx.conf cannot hold; use "
                    "another folder."
                )
        return _TEMPLATE.format(
            # Started by root, nginx would let its workers fall to a user who cannot read our folder.
            user="user root;\n" if os.geteuid() == 0 else "",
            folder=self.folder,
            pki=self.pki,
            listen=self.listen,
            superlink_port=self.superlink_port,
            body=_BODY_MEBIBYTES,
            access_log=ACCESS_LOG,
            locations="\n".join(_LOCATION.format(path=path) for path in self.paths),
        )

    def prepare(self) -> list[str]:
        """Write the configuration, let nginx check it, and return the command that starts it.

        Raises:
            InputError: nginx is not installed, or refuses the configuration.
        """
        program = require_nginx()
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self.config, self.render())
        command = [
            program,
            "-p",
            str(self.folder),
            "-c",
            str(self.config),
            "-e",
            str(self.folder / "error.log"),
        ]
        checked = subprocess.run(
            [*command, "-t", "-q"], capture_output=True, text=True, timeout=30, check=False
        )
        if checked.returncode:
            reason = (checked.stderr.strip().splitlines() or ["no reason given"])[0]
            raise InputError(f"nginx does not accept {self.config}: {reason}")
        return command


def require_nginx() -> str:
    """Return the path of nginx.

    Raises:
        InputError: It is not installed.
    """
    # Debian keeps it in sbin, which is not on every user's PATH.
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    found = shutil.which("nginx", path=path)
    if found is None:
        raise InputError(_INSTALL)
    return found
