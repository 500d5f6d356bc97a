"""Key agreement, derivation, sealing and signatures against published vectors, and their separation."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.errors import ProtocolRefused
from common.key_exchange import (
    SEAL_OVERHEAD,
    AgreementKey,
    derive_key,
    open_sealed,
    seal,
    sign,
    verify,
)

SALT = bytes(32)


def test_x25519_agrees_with_rfc_7748_section_6_1():
    alice = AgreementKey(bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
    bob = AgreementKey(bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    assert alice.public.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert bob.public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert alice.agree(bob.public).hex() == bob.agree(alice.public).hex() == shared


def test_hkdf_of_the_package_agrees_with_rfc_5869_case_1():
    okm = HKDF(
        algorithm=SHA256(),
        length=42,
        salt=bytes(range(13)),
        info=bytes(range(0xF0, 0xFA)),
    ).derive(b"\x0b" * 22)
    assert okm.hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


def test_derived_keys_are_hkdf_over_an_unambiguous_info():
    info = b"\x00\x1dfedward secure aggregation v1\x00\x04mask\x00\x02ab\x00\x01c"
    expected = HKDF(algorithm=SHA256(), length=32, salt=SALT, info=info).derive(b"s" * 32)
    assert derive_key(b"s" * 32, salt=SALT, purpose="mask", context=(b"ab", b"c")) == expected


def test_every_input_separates_derived_keys():
    def key(secret=b"s" * 32, salt=SALT, purpose="mask", context=(b"ab", b"c")):
        return derive_key(secret, salt=salt, purpose=purpose, context=context)

    keys = {
        key(),
        key(secret=b"t" * 32),
        key(salt=b"\x01" * 32),
        key(purpose="seal"),
        key(context=(b"a", b"bc")),
        key(context=(b"c", b"ab")),
        key(context=(b"ab", b"c", b"")),
    }
    assert len(keys) == 7


def test_sealing_is_aes_256_gcm_with_the_nonce_in_front():
    sealed = seal(b"k" * 32, b"plain", associated_data=b"ad")
    assert len(sealed) == 5 + SEAL_OVERHEAD
    assert AESGCM(b"k" * 32).decrypt(sealed[:12], sealed[12:], b"ad") == b"plain"
    assert open_sealed(b"k" * 32, sealed, associated_data=b"ad") == b"plain"
    assert seal(b"k" * 32, b"plain", associated_data=b"ad") != sealed


def test_aes_gcm_of_the_package_agrees_with_the_gcm_specification():
    # McGrew and Viega, test case 14: all-zero key, nonce and one block.
    out = AESGCM(bytes(32)).encrypt(bytes(12), bytes(16), None)
    assert out.hex() == "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"


@pytest.mark.parametrize("index", [0, 11, 12, 16, -1])
def test_an_altered_box_does_not_open(index):
    sealed = bytearray(seal(b"k" * 32, b"plain", associated_data=b"ad"))
    sealed[index] ^= 1
    with pytest.raises(ProtocolRefused, match="does not open"):
        open_sealed(b"k" * 32, bytes(sealed), associated_data=b"ad")


@pytest.mark.parametrize(("key", "data"), [(b"j" * 32, b"ad"), (b"k" * 32, b"da")])
def test_a_box_for_another_use_does_not_open(key, data):
    with pytest.raises(ProtocolRefused):
        open_sealed(key, seal(b"k" * 32, b"plain", associated_data=b"ad"), associated_data=data)


@pytest.mark.parametrize("sealed", [b"", b"short", bytes(28)])
def test_a_short_box_is_refused(sealed):
    with pytest.raises(ProtocolRefused):
        open_sealed(b"k" * 32, sealed, associated_data=b"")


@pytest.mark.parametrize("public", [bytes(32), b"\x01" + bytes(31), bytes(31)])
def test_keys_of_small_order_are_refused(public):
    with pytest.raises(ProtocolRefused, match="small order or not a key"):
        AgreementKey().agree(public)


def test_ed25519_of_the_package_agrees_with_rfc_8032_test_1():
    key = Ed25519PrivateKey.from_private_bytes(
        bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    )
    assert key.public_key().public_bytes_raw().hex() == (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    )
    assert key.sign(b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b"
    )


def test_a_signature_holds_for_one_purpose_and_message():
    key = Ed25519PrivateKey.generate()
    public, signature = key.public_key().public_bytes_raw(), sign(key, "advert", b"message")
    verify(public, signature, "advert", b"message")
    for purpose, message in (("upload", b"message"), ("advert", b"massage"), ("adver", b"tmessage")):
        with pytest.raises(ProtocolRefused, match="does not verify"):
            verify(public, signature, purpose, message)
    with pytest.raises(ProtocolRefused):
        verify(Ed25519PrivateKey.generate().public_key().public_bytes_raw(), signature, "advert", b"message")


def test_keys_do_not_show_in_a_repr():
    key = AgreementKey()
    assert key.private_bytes().hex() not in repr(key)
