"""The federation's folder: a certificate authority of its own, TLS certificates, and Flower's shared secret.

```
DIR/
├── ca.pem, ca.key                 signs the two below; keep ca.key offline between renewals
├── proxy.pem, proxy.key           what sites see: the names of --host
├── superlink.pem, superlink.key   what the proxy sees: 127.0.0.1
├── superexec.secret               between SuperLink and SuperExec
├── address                        host and port that sites use
├── sites/NAME.pub                 SuperNode keys, from `enrol accept`
├── bundles/NAME.bundle.json       what each site is sent
├── roster.toml, plan.toml
└── server.toml                    a skeleton
```

Private keys are 0600. A certificate's dates are checked at every start.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.enrolment import certificate_fingerprint, read_certificate, require_valid_now
from common.errors import InputError, ValidationError
from common.files import PRIVATE, write_atomically, write_private
from common.validation import require_int

AUTHORITY_DAYS = 3650
"""How long the certificate authority is valid."""

CERTIFICATE_DAYS = 397
"""How long a server certificate is valid; browsers' limit, and short enough to renew as a habit."""

WARNING_DAYS = 30
"""A certificate with less time left is warned about at every start."""

CERTIFICATES = ("proxy", "superlink")

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*")
# A clock that is a little behind must not refuse a certificate of this minute.
_BACKDATED = timedelta(hours=1)

_SKELETON = """\
# The server's own file, for `fedward-server up --config`. Paths are taken from this file's folder.
[server]
listen = "0.0.0.0:{port}"   # the TLS proxy, the only port that sites need
pki = "."                # this folder, made by `fedward-server pki init`
state = "state"          # logs, SuperLink's database, process ids
superlink_port = 9092    # loopback only
metrics_port = 0         # Prometheus on loopback; 0 switches it off

[run]
plan = "plan.toml"
roster = "roster.toml"
data = "data"            # a folder with test and, if possible, devel
out = "runs/first"
"""


def init_pki(folder: Path, hosts: Sequence[str], *, port: int = 9443, now: datetime | None = None) -> str:
    """Make the federation's folder.

    Args:
        folder: Absent, or without a certificate authority.
        hosts: Names or IP addresses under which sites reach the proxy; the first goes into their site.toml.
        port: The proxy's port.
        now: The time, UTC; the clock's by default.

    Returns:
        The fingerprint of the certificate authority.

    Raises:
        InputError: A host is not usable, or the folder has a certificate authority already.
    """
    if not hosts:
        raise InputError(
            "--host is missing; give at least one name or address under which sites reach the proxy."
        )
    require_int("--port", port, minimum=1, maximum=65_535)
    names = [_general_name(host) for host in hosts]
    if (folder / "ca.pem").exists() or (folder / "ca.key").exists():
        raise InputError(
            f"{folder} has a certificate authority already; 'fedward-server pki renew --dir {folder}' makes new "
            "certificates with it, and every site keeps the one that it trusts."
        )
    for part in (folder, folder / "sites", folder / "bundles"):
        part.mkdir(parents=True, exist_ok=True, mode=0o700)
    now = now or datetime.now(UTC)
    authority = _make_authority(folder, now)
    _make_certificate(folder, "proxy", names, now)
    _make_certificate(folder, "superlink", [_general_name("127.0.0.1"), _general_name("localhost")], now)
    write_private(folder / "superexec.secret", secrets.token_hex(32).encode())
    host = f"[{hosts[0]}]" if ":" in hosts[0] else hosts[0]
    write_atomically(folder / "address", f"{host}:{port}\n")
    if not (folder / "server.toml").exists():
        write_atomically(folder / "server.toml", _SKELETON.format(port=port))
    return certificate_fingerprint(authority)


def renew_certificates(folder: Path, *, now: datetime | None = None) -> dict[str, datetime]:
    """Make the server's two certificates anew, with the same names and the same authority.

    Returns:
        When each ends, UTC.

    Raises:
        InputError: The authority's key is absent, or its certificate has expired.
    """
    now = now or datetime.now(UTC)
    ends = {}
    for name in CERTIFICATES:
        old = load_certificate(folder / f"{name}.pem")
        names = list(old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        ends[name] = _make_certificate(folder, name, names, now)
    return ends


def check_pki(folder: Path, *, now: datetime | None = None) -> list[str]:
    """Check that everything which `up` needs is there and valid now.

    Returns:
        A warning for each certificate that ends soon.

    Raises:
        InputError: A file is missing or readable by others, or a certificate is not valid now.
    """
    warnings = []
    renew = f"renew it with 'fedward-server pki renew --dir {folder}'"
    anew = "make a new one with 'fedward-server pki init' in another folder, and enrol every site again"
    for name, remedy in (("ca", anew), ("proxy", renew), ("superlink", renew)):
        path = folder / f"{name}.pem"
        left = require_valid_now(load_certificate(path), f"{path}: this certificate", remedy, now=now)
        if left < timedelta(days=WARNING_DAYS):
            warnings.append(f"{path}: this certificate ends in {left.days} days; {remedy}.")
    for name in ("proxy.key", "superlink.key", "superexec.secret"):
        require_private(folder / name)
    for name in CERTIFICATES:
        _require_pair(folder, name)
    return warnings


def load_certificate(path: Path) -> x509.Certificate:
    """Read a certificate.

    Raises:
        InputError: The file is missing, or no certificate.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; make it with 'fedward-server pki init'.") from None
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{path} cannot be read as a certificate.") from None
    return read_certificate(text, str(path))


def require_private(path: Path) -> None:
    """Raise unless a key file is there and nobody else can read it.

    Raises:
        InputError: It is missing, or its mode is too wide.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; make it with 'fedward-server pki init'.")
    if path.stat().st_mode & 0o077:
        raise InputError(f"{path} can be read by others; run 'chmod 600 {path}'.")


def _make_authority(folder: Path, now: datetime) -> str:
    """Make the certificate authority and return its certificate."""
    key = _new_key(folder / "ca.key")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedward {secrets.token_hex(4)}")])
    builder = _builder(subject, subject, key, key, now, AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    pem = builder.sign(key, hashes.SHA384()).public_bytes(Encoding.PEM).decode()
    write_atomically(folder / "ca.pem", pem)
    return pem


def _make_certificate(folder: Path, name: str, names: Sequence[x509.GeneralName], now: datetime) -> datetime:
    """Make one server certificate with a key of its own, and return when it ends."""
    authority, authority_key = _authority(folder, now)
    key = _new_key(folder / f"{name}.key")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedward {name}")])
    days = min(CERTIFICATE_DAYS, (authority.not_valid_after_utc - now).days)
    builder = _builder(subject, authority.subject, key, authority_key, now, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    made = builder.sign(authority_key, hashes.SHA384())
    write_atomically(folder / f"{name}.pem", made.public_bytes(Encoding.PEM).decode())
    return made.not_valid_after_utc


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: datetime,
    days: int,
) -> x509.CertificateBuilder:
    """Begin a certificate; Python 3.13 and later ask for both key identifiers."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """Return what a key may be used for."""
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _authority(folder: Path, now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return the certificate authority and its key, which must belong together and be valid."""
    path = folder / "ca.pem"
    certificate = load_certificate(path)
    require_valid_now(
        certificate,
        f"{path}: the certificate authority",
        "make a new one with 'fedward-server pki init' in another folder, and enrol every site again",
        now=now,
    )
    if not (folder / "ca.key").exists():
        raise InputError(f"{folder / 'ca.key'} is not here; bring it back from where it is kept offline.")
    require_private(folder / "ca.key")
    key = _load_key(folder / "ca.key")
    if key.public_key() != certificate.public_key():
        raise InputError(f"{folder / 'ca.key'} is not the key of {path}.")
    return certificate, key


def _require_pair(folder: Path, name: str) -> None:
    """Raise unless a certificate is its key's and the authority's."""
    certificate = load_certificate(folder / f"{name}.pem")
    if _load_key(folder / f"{name}.key").public_key() != certificate.public_key():
        raise InputError(
            f"{folder / name}.key is not the key of {name}.pem; run 'fedward-server pki renew --dir {folder}'."
        )
    try:
        certificate.verify_directly_issued_by(load_certificate(folder / "ca.pem"))
    except Exception:
        raise InputError(
            f"{folder / name}.pem was not made by the authority in ca.pem, so that no site would trust it; run "
            f"'fedward-server pki renew --dir {folder}'."
        ) from None


def _new_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Make a key and write it, mode 0600."""
    key = ec.generate_private_key(ec.SECP384R1())
    write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(PRIVATE)
    return key


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read an EC key."""
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"{path} is not an EC private key in PEM format.")
    return key


def _general_name(host: str) -> x509.GeneralName:
    """Return a host as it stands in a certificate."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST.fullmatch(host) or len(host) > 253:
        raise ValidationError(f"--host is {host!r}; it must be a host name or an IP address, without a port.")
    return x509.DNSName(host)
