"""How a site joins: keys that never leave it, a signed request for the server, and the server's bundle.

```
DIR/
├── identity.pem       Ed25519, mode 0600: signs what the site says to its peers
├── supernode.key      ECDSA P-384, mode 0600: Flower's SuperNode proves itself with it
├── site.toml          a skeleton; what only the site can say is left to fill in
├── enrolment.json     goes to the server
├── server-ca.pem      from the bundle: whom the SuperNode trusts
├── roster.toml        from the bundle
└── plan.toml          from the bundle, once there is a plan; the site still has to approve it
```
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_ssh_private_key,
)

from client.keys import load_identity_key, make_identity_key
from common.enrolment import (
    Bundle,
    EnrolmentRequest,
    certificate_fingerprint,
    read_bundle,
    read_certificate,
    require_valid_now,
    supernode_key_text,
)
from common.errors import InputError
from common.files import write_atomically, write_private
from common.roster import Member, Roster, read_roster

IDENTITY = "identity.pem"
SUPERNODE = "supernode.key"
REQUEST = "enrolment.json"

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):([0-9]{1,5})")

_SKELETON = """\
# One site's own file; the server changes none of it. Paths are taken from this file's folder.
[site]
name = "{name}"
data = "records"            # a folder with `train`, in any format that ingestion reads
roster = "roster.toml"
spool = "spool"
plan = "plan.toml"
device = "auto"

[keys]
identity = "{identity}"

# What this site will ever spend and take part in. Nobody can say these numbers for it: fill in both and remove the #.
[policy]
# max_epsilon =
# max_delta =
# required_unit = "patient"   # the least that a private plan must protect; "document" and "record" protect less
approvals = "approvals.json"

# A private plan needs a ledger: remove the # of these lines and say whose privacy is spent.
# [ledger]
# path = "ledger.sqlite"
# witness = "/var/backups/fedward/witness.json"   # in another folder, best on another disk
# account = "oncology"
# unit = "patient"
# delta = 1e-5
# declaration = "Patients of the oncology ward from 2015 to 2024."

# Who runs what, and where the logs go; one user for all, without isolation, unless you say otherwise.
[agent]
socket = "run/agent.sock"

[server]
address = "{address}"
ca = "server-ca.pem"
supernode_key = "{supernode}"
flwr_home = "flwr"
port = 0
"""


def enrol(
    *, name: str, server: str, out: Path, public_units: int = 1, now: datetime | None = None
) -> EnrolmentRequest:
    """Make a site's keys, its request and a skeleton of its `site.toml`.

    Keys that are there already are kept, so that a request can be made anew without a new identity.

    Args:
        name: The site's name in the roster.
        server: Host and port of the server's TLS proxy.
        out: The site's folder; made with mode 0700 where it is absent.
        public_units: The public number that the site's weight is in proportion to.
        now: The time, UTC; the clock's by default.

    Raises:
        InputError: The name or address cannot be used, or a key in the folder cannot be read.
    """
    Member(name=name, identity_key=bytes(32), public_units=public_units)
    require_address(server)
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not (out / IDENTITY).exists():
        make_identity_key(out / IDENTITY)
    identity = load_identity_key(out / IDENTITY)
    supernode = _supernode_key(out / SUPERNODE)
    request = EnrolmentRequest(
        member=Member(
            name=name, identity_key=identity.public_key().public_bytes_raw(), public_units=public_units
        ),
        supernode_key=supernode_key_text(supernode.public_key()),
        created=(now or datetime.now(UTC)).replace(microsecond=0),
    )
    write_atomically(out / REQUEST, request.signed(identity, supernode))
    if not (out / "site.toml").exists():
        write_private(
            out / "site.toml",
            _SKELETON.format(name=name, address=server, identity=IDENTITY, supernode=SUPERNODE).encode(),
        )
    return request


def install_bundle(path: Path, out: Path, *, say: Callable[[str], None] = lambda sentence: None) -> Bundle:
    """Check the server's bundle against this site's own keys and put its files into the site's folder.

    Args:
        path: The bundle.
        out: The folder that `enrol` made.
        say: Gets a sentence on what changed.

    Raises:
        InputError: The bundle is another site's, lists another key for this site, or its certificate
            has expired; nothing was changed.
    """
    bundle = read_bundle(path)
    require_address(bundle.address)
    own = load_identity_key(out / IDENTITY).public_key().public_bytes_raw()
    authority = read_certificate(bundle.ca, f"{path}: its certificate authority")
    require_valid_now(
        authority, f"{path}: the server's certificate authority", "ask the server for a new bundle"
    )
    files = {"server-ca.pem": bundle.ca, "roster.toml": bundle.roster}
    if bundle.plan:
        files["plan.toml"] = bundle.plan
    roster = _checked_roster(bundle, out, path)
    if roster.member(bundle.site).identity_key != own:
        raise InputError(
            f"{path}: the roster lists another identity key for {bundle.site} than {out / IDENTITY}; send the "
            "server this folder's enrolment.json, and it adds --replace if the key was changed on purpose."
        )
    for name, text in files.items():
        target = out / name
        if target.exists() and target.read_text("utf-8") != text:
            say(f"{target} is replaced; a changed roster or plan must be approved anew.")
        write_atomically(target, text)
    say(f"Fingerprint of the server's certificate authority: {certificate_fingerprint(bundle.ca)}.")
    return bundle


def require_address(text: str) -> tuple[str, int]:
    """Return host and port of an address such as `fedward.example.org:9443`.

    Raises:
        InputError: It is something else.
    """
    found = _ADDRESS.fullmatch(text)
    if not found or not 1 <= int(found[2]) <= 65_535:
        raise InputError(
            f"The server's address is {text!r}; give it as host:port, without https:// in front."
        )
    return found[1].strip("[]"), int(found[2])


def _checked_roster(bundle: Bundle, out: Path, path: Path) -> Roster:
    """Return the bundle's roster, which must list the site."""
    partial = out / f".roster.{os.getpid()}.part"
    try:
        partial.write_text(bundle.roster, encoding="utf-8")
        roster = read_roster(partial)
    except InputError:
        raise InputError(f"{path}: its roster cannot be read; ask the server for a new bundle.") from None
    finally:
        partial.unlink(missing_ok=True)
    if bundle.site not in roster:
        raise InputError(
            f"{path}: its roster has no member {bundle.site!r}; ask the server for a new bundle."
        )
    return roster


def _supernode_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read the SuperNode's key, or make one; Flower 1.42 reads OpenSSH's format alone."""
    if not path.exists():
        made = ec.generate_private_key(ec.SECP384R1())
        write_private(path, made.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    if path.stat().st_mode & 0o077:
        raise InputError(f"{path}: others have access to the SuperNode's key; run 'chmod 600 {path}'.")
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise InputError(
            f"{path}: this is not an ECDSA P-384 private key in OpenSSH format; move it away, and "
            "fedward-site enrol makes a new one."
        )
    return key
