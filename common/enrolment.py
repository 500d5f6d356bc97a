"""What a site and the server hand each other before the first round: a request, and a bundle in return.

The request carries public keys alone and is signed with both private keys behind them, so that nobody can
enrol another site's key as its own. The bundle says whom to trust; a person compares its fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from common.errors import InputError, ValidationError
from common.roster import Member, parse_identity_key
from common.validation import require_int, require_known_keys, require_text
from common.wire_format import Writer

REQUEST_FORMAT: Final = "fedward enrolment v1"
BUNDLE_FORMAT: Final = "fedward bundle v1"
MAXIMUM_BYTES: Final = 1 << 22
"""The largest request or bundle that is read; a roster of 4,096 sites takes well under 1 MiB."""

_SKEW = timedelta(minutes=5)
_REQUEST = (
    "format",
    "name",
    "identity_key",
    "supernode_key",
    "public_units",
    "created",
    "signature",
    "supernode_signature",
)
_BUNDLE = ("format", "site", "address", "ca", "roster", "plan")


@dataclass(frozen=True, kw_only=True)
class EnrolmentRequest:
    """What a site asks with.

    Attributes:
        member: The roster entry: name, identity key, public units.
        supernode_key: The SuperNode's public key in OpenSSH format, ECDSA P-384, without a comment.
        created: When the request was made, UTC.
    """

    member: Member
    supernode_key: str
    created: datetime

    def __post_init__(self) -> None:
        """Check that the SuperNode's key is one that Flower takes."""
        parse_supernode_key(self.supernode_key)

    def signed_bytes(self) -> bytes:
        """Return what both signatures are over."""
        out = Writer().text(REQUEST_FORMAT).text(self.member.name).raw(self.member.identity_key, 32)
        out.text(self.supernode_key).raw(self.member.public_units.to_bytes(8), 8)
        return out.text(self.created.isoformat()).finish()

    def signed(self, identity: Ed25519PrivateKey, supernode: ec.EllipticCurvePrivateKey) -> str:
        """Return the request as JSON, signed with both keys."""
        message = self.signed_bytes()
        document = {
            "format": REQUEST_FORMAT,
            "name": self.member.name,
            "identity_key": self.member.identity_key.hex(),
            "supernode_key": self.supernode_key,
            "public_units": self.member.public_units,
            "created": self.created.isoformat(),
            "signature": identity.sign(message).hex(),
            "supernode_signature": supernode.sign(message, ec.ECDSA(hashes.SHA384())).hex(),
        }
        return json.dumps(document, indent=2) + "\n"


def read_request(path: Path, *, now: datetime | None = None) -> EnrolmentRequest:
    """Read a request and check both signatures.

    Args:
        path: The site's `enrolment.json`.
        now: The time, UTC; the clock's by default.

    Raises:
        InputError: The file is no request, was changed after it was signed, or is from the future.
    """
    document = _document(
        path, REQUEST_FORMAT, _REQUEST, "an enrolment request; ask the site for enrolment.json"
    )
    try:
        request = EnrolmentRequest(
            member=Member(
                name=require_text("name", document["name"]),
                identity_key=parse_identity_key(document["identity_key"]),
                public_units=require_int("public_units", document["public_units"], minimum=1, maximum=2**40),
            ),
            supernode_key=require_text("supernode_key", document["supernode_key"]),
            created=_instant(document["created"]),
        )
        _verify(request, _signature(document, "signature"), _signature(document, "supernode_signature"))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    now = now or datetime.now(UTC)
    if request.created > now + _SKEW:
        raise InputError(
            f"{path}: the request of {request.member.name} is dated {request.created:%Y-%m-%d %H:%M} UTC and this "
            f"machine's clock says {now:%Y-%m-%d %H:%M}; set both clocks by NTP, since Flower refuses a SuperNode "
            "whose clock is off by minutes."
        )
    return request


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What the server gives a site.

    Attributes:
        site: The site's name.
        address: Host and port of the server's TLS proxy.
        ca: The certificate authority of the server, PEM.
        roster: The roster, TOML.
        plan: The plan, TOML; empty where there is none yet.
    """

    site: str
    address: str
    ca: str
    roster: str
    plan: str = ""

    def to_json(self) -> str:
        """Return the bundle as JSON."""
        return json.dumps({"format": BUNDLE_FORMAT, **self.__dict__}, indent=2) + "\n"


def read_bundle(path: Path) -> Bundle:
    """Read a bundle.

    Raises:
        InputError: The file is no bundle.
    """
    document = _document(
        path, BUNDLE_FORMAT, _BUNDLE, "a bundle; ask the server for this site's NAME.bundle.json"
    )
    texts = {name: document[name] for name in _BUNDLE if name != "format"}
    if not all(isinstance(text, str) for text in texts.values()):
        raise InputError(f"{path}: every field of a bundle is a text.")
    return Bundle(**texts)


def parse_supernode_key(text: str) -> ec.EllipticCurvePublicKey:
    """Return a SuperNode's public key.

    Raises:
        ValidationError: The text is something else than an ECDSA P-384 key in OpenSSH format.
    """
    try:
        key = load_ssh_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValidationError(
            "supernode_key must be an ECDSA P-384 public key in OpenSSH format; fedward-site enrol makes one."
        )
    if supernode_key_text(key) != text:
        raise ValidationError(
            "supernode_key must be the key alone, without a comment or white space around it."
        )
    return key


def supernode_key_text(key: ec.EllipticCurvePublicKey) -> str:
    """Return a SuperNode's public key in OpenSSH format."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def certificate_fingerprint(pem: str) -> str:
    """Return a certificate's SHA-256, in groups of four hexadecimal digits, for people to compare.

    Raises:
        InputError: The text is not a certificate.
    """
    text = hashlib.sha256(read_certificate(pem, "The certificate").public_bytes(Encoding.DER)).hexdigest()[
        :40
    ]
    return " ".join(text[at : at + 4] for at in range(0, 40, 4))


def read_certificate(pem: str, what: str) -> x509.Certificate:
    """Return the certificate in a PEM text.

    Raises:
        InputError: There is none; the sentence begins with `what`.
    """
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except ValueError:
        raise InputError(f"{what} is not a certificate in PEM format.") from None


def require_valid_now(
    certificate: x509.Certificate, what: str, remedy: str, *, now: datetime | None = None
) -> timedelta:
    """Return for how long a certificate is still valid.

    Args:
        certificate: The certificate.
        what: Begins the sentence: the file and what it is for.
        remedy: Ends the sentence: what to do.
        now: The time, UTC; the clock's by default.

    Raises:
        InputError: It has expired, or is not valid yet; the sentence gives the date.
    """
    now = now or datetime.now(UTC)
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < first:
        raise InputError(
            f"{what} is valid from {first:%Y-%m-%d %H:%M} UTC and this machine's clock says {now:%Y-%m-%d %H:%M}; "
            "set the clock by NTP."
        )
    if now >= last:
        raise InputError(f"{what} expired on {last:%Y-%m-%d} (UTC); {remedy}.")
    return last - now


def _document(path: Path, form: str, keys: tuple[str, ...], what: str) -> Mapping[str, Any]:
    """Return a JSON object that has exactly these keys."""
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(MAXIMUM_BYTES + 1)[:MAXIMUM_BYTES])
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except (OSError, ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or document.get("format") != form:
        raise InputError(f"{path} is not {what}.")
    require_known_keys(str(path), document, keys)
    for key in keys:
        if key not in document:
            raise InputError(f"{path}: {key} is missing.")
    return document


def _instant(text: object) -> datetime:
    """Return a time in UTC from ISO 8601."""
    try:
        time = datetime.fromisoformat(require_text("created", text))
    except ValueError:
        raise ValidationError("created must be a time in ISO 8601 with its offset from UTC.") from None
    if time.tzinfo is None:
        raise ValidationError("created must be a time in ISO 8601 with its offset from UTC.")
    return time.astimezone(UTC)


def _signature(document: Mapping[str, Any], name: str) -> bytes:
    """Return a signature from its hexadecimal digits."""
    try:
        return bytes.fromhex(require_text(name, document[name]))
    except ValueError:
        raise ValidationError(f"{name} must be hexadecimal digits.") from None


def _verify(request: EnrolmentRequest, signature: bytes, supernode_signature: bytes) -> None:
    """Raise unless both keys have signed the request."""
    message = request.signed_bytes()
    try:
        Ed25519PublicKey.from_public_bytes(request.member.identity_key).verify(signature, message)
        parse_supernode_key(request.supernode_key).verify(
            supernode_signature, message, ec.ECDSA(hashes.SHA384())
        )
    except (InvalidSignature, ValueError):
        raise InputError(
            f"the signatures are not those of {request.member.name}'s keys; the file was changed on its way, so "
            "ask the site to send it again."
        ) from None
