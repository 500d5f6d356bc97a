"""Fresh X25519 keys, the keys derived from them, sealed boxes, and the sites' Ed25519 identities.

X25519: RFC 7748. HKDF-SHA256: RFC 5869. Ed25519: RFC 8032. AES-256-GCM: NIST SP 800-38D. HMAC is
the standard library's, the rest the `cryptography` package's; this module fixes what goes in, so that no
key serves two purposes.

Domain separation: every derived key has the attempt's context hash as salt and an info of purpose, public
context and both names, each length-prefixed. Sealing keys are per direction. Every signature covers a
purpose, so that a signature for one kind of message cannot be replayed as another.
"""

from __future__ import annotations

import hmac
import os

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common.errors import ProtocolRefused
from common.wire_format import Writer

KEY_BYTES = 32
"""Length of every key, private, public or derived."""

SIGNATURE_BYTES = 64
"""Length of an Ed25519 signature."""

SEAL_OVERHEAD = 12 + 16
"""Bytes that sealing adds: the nonce and the tag."""

_PROTOCOL = "fedward secure aggregation v1"


class AgreementKey:
    """One X25519 key pair that lives for one attempt; the private half is never shown."""

    def __init__(self, private: bytes | None = None) -> None:
        """Make a fresh key, or take a reconstructed one."""
        self._key = (
            X25519PrivateKey.generate() if private is None else X25519PrivateKey.from_private_bytes(private)
        )

    @property
    def public(self) -> bytes:
        """The public key, 32 bytes."""
        return self._key.public_key().public_bytes_raw()

    def private_bytes(self) -> bytes:
        """Return the private key, 32 bytes, for secret sharing."""
        return self._key.private_bytes_raw()

    def agree(self, peer_public: bytes) -> bytes:
        """Return the 32-byte shared secret with a peer.

        Raises:
            ProtocolRefused: The peer's key has small order, so the secret would be known to all.
        """
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(peer_public))
        except ValueError:
            raise ProtocolRefused("A peer's public key is of small order or not a key.") from None

    def __repr__(self) -> str:
        """Show nothing."""
        return "AgreementKey(<private>)"


def derive_key(secret: bytes, *, salt: bytes, purpose: str, context: tuple[bytes, ...] = ()) -> bytes:
    """Derive a 32-byte key by HKDF-SHA256 with a length-prefixed, purpose-separated info.

    Args:
        secret: Input keying material, such as an X25519 shared secret.
        salt: The attempt's context hash.
        purpose: What the key is for; no two uses share one.
        context: Public values that the key is bound to.
    """
    info = Writer().text(_PROTOCOL).text(purpose)
    for value in context:
        info.blob(value)
    # RFC 5869 for one block of output: extract, then expand. One-shot HMACs are quick.
    extracted = hmac.digest(salt, secret, "sha256")
    return hmac.digest(extracted, info.finish() + b"\x01", "sha256")


def seal(key: bytes, plaintext: bytes, *, associated_data: bytes) -> bytes:
    """Encrypt and authenticate under AES-256-GCM with a random 96-bit nonce, which comes first."""
    nonce = os.urandom(12)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, associated_data)


def open_sealed(key: bytes, sealed: bytes, *, associated_data: bytes) -> bytes:
    """Return the plaintext of `seal`.

    Raises:
        ProtocolRefused: The box was made under another key, for other associated data, or was altered.
    """
    try:
        return AESGCM(key).decrypt(sealed[:12], sealed[12:], associated_data)
    except (InvalidTag, ValueError):
        raise ProtocolRefused(
            "A sealed share does not open: it was altered or made for another use."
        ) from None


def sign(key: Ed25519PrivateKey, purpose: str, message: bytes) -> bytes:
    """Sign a message for one purpose with a site's identity key."""
    return key.sign(_signed_bytes(purpose, message))


def verify(public: bytes, signature: bytes, purpose: str, message: bytes) -> None:
    """Check a signature by `sign`.

    Raises:
        ProtocolRefused: The signature is not this key's over this purpose and message.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _signed_bytes(purpose, message))
    except (InvalidSignature, ValueError):
        raise ProtocolRefused(f"A signature for {purpose} does not verify.") from None


def _signed_bytes(purpose: str, message: bytes) -> bytes:
    """What is signed: protocol, purpose and the message, unambiguously."""
    return Writer().text(_PROTOCOL).text(purpose).finish() + message
