"""The site's identity key: an Ed25519 key in a PEM file that only its owner can read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from common.errors import InputError


def make_identity_key(path: Path, *, passphrase: bytes | None = None) -> bytes:
    """Make a new identity key and write it as PKCS #8 PEM with file mode 0600.

    Args:
        path: The new file; it must not exist.
        passphrase: Encrypts the file where given; not empty.

    Returns:
        The public key, 32 bytes, for the roster.

    Raises:
        InputError: The file exists, cannot be made, or the passphrase is empty.
    """
    if passphrase == b"":
        raise InputError("The passphrase is empty; give one or leave it out.")
    key = Ed25519PrivateKey.generate()
    protection: KeySerializationEncryption = NoEncryption()
    if passphrase is not None:
        protection = BestAvailableEncryption(passphrase)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)
    write_new_private(path, pem)
    return key.public_key().public_bytes_raw()


def load_identity_key(path: Path, *, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """Read the identity key.

    Raises:
        InputError: The file is missing, others may read or write it, the passphrase does not open it, or
            it holds something else.
    """
    pem = read_private(path)
    try:
        key = load_pem_private_key(pem, passphrase)
    except TypeError:
        hint = (
            "is encrypted; give its passphrase"
            if passphrase is None
            else "is not encrypted; give no passphrase"
        )
        raise InputError(f"{path}: the identity key {hint}.") from None
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(f"{path}: this is not a key file, or the passphrase is wrong.") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(
            f"{path}: the identity key must be an Ed25519 key; make it with 'fedward-site keys new'."
        )
    return key


def write_new_private(path: Path, content: bytes, *, what: str = "identity key") -> None:
    """Create a 0600 file, flushed to disk; never replace one.

    Args:
        path: The new file.
        content: A key.
        what: What to call it in a message.

    Raises:
        InputError: The file exists or cannot be made.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise InputError(f"{path}: a file is there already; the {what} is never overwritten.") from None
    except OSError as error:
        raise InputError(f"{path}: the {what} cannot be written ({error.strerror}).") from None
    with os.fdopen(handle, "wb") as out:
        os.fchmod(out.fileno(), 0o600)
        out.write(content)
        out.flush()
        os.fsync(out.fileno())


def read_private(path: Path, *, what: str = "identity key") -> bytes:
    """Return the content of a file that nobody but its owner may touch.

    Args:
        path: The file.
        what: What to call it in a message.

    Raises:
        InputError: It cannot be read, or others have access.
    """
    try:
        with path.open("rb") as source:
            mode = stat.S_IMODE(os.fstat(source.fileno()).st_mode)
            if mode & 0o077:
                raise InputError(
                    f"{path}: the {what} has mode {mode:04o}; others must not have access. Run "
                    f"'chmod 600 {path}'."
                )
            return source.read(65_536)
    except OSError as error:
        raise InputError(f"{path}: the {what} cannot be read ({error.strerror}).") from None
