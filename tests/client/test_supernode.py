"""How a SuperNode is started, and what is noticed before it is."""

import os
import socket
import ssl
import threading
import tomllib
from datetime import UTC, datetime, timedelta

import pytest
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from client.isolation import SiteUsers
from client.settings import read_settings
from client.supernode import supernode_spec
from common.errors import InputError, PlanError


@pytest.fixture
def spec_of(tmp_path):
    """A function that returns how the SuperNode of a site with this `[server]` is started."""

    def make(**server):
        names = {"name": "a", "data": "d", "roster": "r.toml", "spool": "s", "plan": "p.toml"}
        table = {"site": names, "keys": {"identity": "i.pem"}} | ({"server": server} if server else {})
        (tmp_path / "site.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
        settings = read_settings(tmp_path / "site.toml")
        return supernode_spec(settings, SiteUsers.of(settings))

    return make


def certificate(folder, name, *, starts=-1, days=30):
    """Write a self-signed certificate for 127.0.0.1; return its path and its key's."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    import ipaddress

    start = datetime.now(UTC) + timedelta(days=starts)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(built.public_bytes(Encoding.PEM))
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / f"{name}.key").write_bytes(private)
    return folder / f"{name}.pem", folder / f"{name}.key"


@pytest.fixture
def tls_server(tmp_path):
    """A TLS server on loopback; returns its address and its certificate."""
    path, key = certificate(tmp_path, "server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, key)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
                with context.wrap_socket(connection, server_side=True):
                    pass
            except ssl.SSLError:
                continue
            except OSError:
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"127.0.0.1:{listener.getsockname()[1]}", path
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def test_a_trial_on_loopback(spec_of, tmp_path):
    spec = spec_of(address="127.0.0.1:9")
    assert "--insecure" in spec.command
    config = tomllib.loads(spec.command[spec.command.index("--node-config") + 1])
    assert config == {"agent-socket": str(tmp_path / "run" / "agent.sock")}
    assert spec.environment["FLWR_HOME"] == str(tmp_path / "flwr")
    assert spec.environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert (tmp_path / "flwr").stat().st_mode & 0o777 == 0o700


def test_a_childs_environment_holds_nothing_of_the_operators(spec_of, monkeypatch):
    monkeypatch.setenv("HOSPITAL_TOKEN", "secret")
    assert "HOSPITAL_TOKEN" not in spec_of(address="127.0.0.1:9").environment


def test_tls_and_the_sites_own_key(spec_of, tmp_path, tls_server):
    address, ca = tls_server
    (tmp_path / "supernode.key").write_text("key")
    command = spec_of(address=address, ca=str(ca), supernode_key="supernode.key").command
    assert "--insecure" not in command
    assert command[command.index("--root-certificates") + 1] == str(ca)
    assert command[command.index("--auth-supernode-private-key") + 1] == str(tmp_path / "supernode.key")


def test_a_server_that_does_not_answer_is_waited_for(spec_of, tmp_path):
    ca, _ = certificate(tmp_path, "ca")
    assert "--root-certificates" in spec_of(address="127.0.0.1:9", ca=str(ca)).command


def test_the_server_of_another_authority_is_named(spec_of, tmp_path, tls_server):
    ca, _ = certificate(tmp_path, "other")
    with pytest.raises(InputError, match=r"the server's certificate was refused \(self-signed"):
        spec_of(address=tls_server[0], ca=str(ca))


@pytest.mark.parametrize(
    ("starts", "said"), [(-60, r"the certificate expired on 20\d\d-"), (1, "this host's clock says")]
)
def test_a_certificate_that_is_not_valid_now_is_named_with_its_date(spec_of, tmp_path, starts, said):
    ca, _ = certificate(tmp_path, "ca", starts=starts)
    with pytest.raises(InputError, match=said):
        spec_of(address="127.0.0.1:9", ca=str(ca))


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ({}, r"\[server\] is missing"),
        ({"address": "federation.example:8443"}, r"server\.ca is missing"),
        ({"address": "127.0.0.1:9", "supernode_key": "k"}, r"needs server\.ca"),
        ({"address": "127.0.0.1:9", "ca": "none.pem"}, "is not a file of PEM certificates"),
    ],
)
def test_what_cannot_be_started(spec_of, server, said):
    with pytest.raises(PlanError, match=said):
        spec_of(**server)


def test_a_port_in_use_is_named(spec_of):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} cannot be used"):
            spec_of(address="127.0.0.1:9", port=port)


def test_a_key_that_is_not_there(spec_of, tmp_path):
    ca, _ = certificate(tmp_path, "ca")
    with pytest.raises(PlanError, match="is not there"):
        spec_of(address="127.0.0.1:9", ca=str(ca), supernode_key="none.key")


def test_the_user_is_this_one(spec_of):
    assert spec_of(address="127.0.0.1:9").user.uid == os.geteuid()


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can start a process as another user")
def test_what_the_supernodes_user_cannot_read_is_named(tmp_path):
    ca, _ = certificate(tmp_path, "ca")
    names = {"name": "a", "data": "d", "roster": "r.toml", "spool": "s", "plan": "p.toml"}
    agent = {"user": "daemon", "supernode_user": "nobody", "socket_group": "daemon"}
    table = {"site": names, "keys": {"identity": "i.pem"}, "agent": agent}
    table["server"] = {"address": "127.0.0.1:9", "ca": str(ca)}
    (tmp_path / "site.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
    settings = read_settings(tmp_path / "site.toml")
    tmp_path.chmod(0o700)
    with pytest.raises(InputError, match=r"server\.ca, .* cannot be read by nobody"):
        supernode_spec(settings, SiteUsers.of(settings))
