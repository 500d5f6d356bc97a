"""The identity key's file."""

import os

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from client.keys import load_identity_key, make_identity_key
from common.errors import InputError


@pytest.mark.parametrize("passphrase", [None, b"a long passphrase"])
def test_a_key_is_made_private_and_loads_back(tmp_path, passphrase):
    path = tmp_path / "identity.pem"
    public = make_identity_key(path, passphrase=passphrase)
    assert path.stat().st_mode & 0o777 == 0o600
    assert (b"ENCRYPTED" in path.read_bytes()) == (passphrase is not None)
    assert load_identity_key(path, passphrase=passphrase).public_key().public_bytes_raw() == public


def test_the_mode_does_not_depend_on_the_umask(tmp_path):
    old = os.umask(0)
    try:
        make_identity_key(tmp_path / "identity.pem")
    finally:
        os.umask(old)
    assert (tmp_path / "identity.pem").stat().st_mode & 0o777 == 0o600


def test_a_key_is_never_overwritten(tmp_path):
    path = tmp_path / "identity.pem"
    make_identity_key(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="never overwritten"):
        make_identity_key(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o622])
def test_a_key_that_others_may_touch_is_refused(tmp_path, mode):
    path = tmp_path / "identity.pem"
    make_identity_key(path)
    path.chmod(mode)
    with pytest.raises(InputError, match=f"mode {mode:04o}.*chmod 600"):
        load_identity_key(path)


@pytest.mark.parametrize(
    ("made", "given", "words"),
    [
        (b"right", b"wrong", "passphrase is wrong"),
        (b"right", None, "is encrypted; give its passphrase"),
        (None, b"some", "is not encrypted; give no passphrase"),
    ],
)
def test_a_passphrase_that_does_not_fit_is_said(tmp_path, made, given, words):
    path = tmp_path / "identity.pem"
    make_identity_key(path, passphrase=made)
    with pytest.raises(InputError, match=words) as caught:
        load_identity_key(path, passphrase=given)
    assert "right" not in str(caught.value).replace("wrong", "")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "identity.pem"
    path.touch(mode=0o600)
    with pytest.raises(InputError, match="not a key file"):
        load_identity_key(path)
    other = X25519PrivateKey.generate()
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(InputError, match="must be an Ed25519 key"):
        load_identity_key(path)
    with pytest.raises(InputError, match="cannot be read"):
        load_identity_key(tmp_path / "absent.pem")
    with pytest.raises(InputError, match="cannot be written"):
        make_identity_key(tmp_path / "absent" / "identity.pem")
    with pytest.raises(InputError, match="passphrase is empty"):
        make_identity_key(tmp_path / "new.pem", passphrase=b"")
