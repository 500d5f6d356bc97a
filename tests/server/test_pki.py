"""Certificates: who signs whom, for which names, how long, and what an operator is told."""

from __future__ import annotations

import ipaddress
import ssl
import stat
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from common.errors import InputError
from server.cli import main
from server.pki import check_pki, init_pki, load_certificate, renew_certificates

NOW = datetime(2030, 5, 6, 7, 8, tzinfo=UTC)


@pytest.fixture
def fed(tmp_path):
    init_pki(tmp_path / "fed", ["fed.example.org", "10.0.0.7"], port=443, now=NOW)
    return tmp_path / "fed"


def test_names_and_constraints(fed):
    proxy = load_certificate(fed / "proxy.pem")
    names = proxy.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example.org"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("10.0.0.7")]
    assert not proxy.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    ca = load_certificate(fed / "ca.pem")
    proxy.verify_directly_issued_by(ca)
    # The authority can sign certificates of servers, and no further authority.
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert (fed / "address").read_text() == "fed.example.org:443\n"


def test_openssl_takes_them(fed):
    context = ssl.create_default_context(cafile=str(fed / "ca.pem"))
    # Python 3.13's default; it asks for both key identifiers.
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    assert len(context.get_ca_certs()) == 1
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(fed / "proxy.pem", fed / "proxy.key")


def test_private_files_are_private(fed):
    for name in ("ca.key", "proxy.key", "superlink.key", "superexec.secret"):
        assert stat.S_IMODE((fed / name).stat().st_mode) == 0o600
    (fed / "superexec.secret").chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        check_pki(fed, now=NOW)


@pytest.mark.parametrize(
    ("days", "message"),
    [
        (
            398,
            r"proxy.pem: this certificate expired on 2031-06-07 \(UTC\); renew it with 'fedward-server pki renew",
        ),
        (4000, r"ca.pem: this certificate expired on 2040-05-03 \(UTC\); make a new one"),
        (
            -1,
            r"valid from 2030-05-06 06:08 UTC and this machine's clock says 2030-05-05 07:08; set the clock",
        ),
    ],
)
def test_dates_are_told(fed, days, message):
    with pytest.raises(InputError, match=message):
        check_pki(fed, now=NOW + timedelta(days=days))


def test_a_certificate_that_ends_soon_is_warned_about(fed):
    assert check_pki(fed, now=NOW) == []
    warned = check_pki(fed, now=NOW + timedelta(days=380))
    assert [("ends in 17 days" in sentence, "pki renew" in sentence) for sentence in warned] == [
        (True, True)
    ] * 2


def test_renewal_keeps_names_and_authority(fed):
    before = {path.name: path.read_bytes() for path in fed.glob("*.*")}
    ends = renew_certificates(fed, now=NOW + timedelta(days=390))
    assert check_pki(fed, now=NOW + timedelta(days=500)) == []
    assert ends["proxy"] == NOW + timedelta(days=787)
    for name in ("ca.pem", "ca.key", "superexec.secret", "server.toml"):
        assert (fed / name).read_bytes() == before[name]
    assert (fed / "proxy.key").read_bytes() != before["proxy.key"]


def test_what_does_not_belong_together(fed, tmp_path):
    init_pki(tmp_path / "other", ["h"], now=NOW)
    kept = (fed / "proxy.pem").read_bytes()
    (fed / "proxy.pem").write_bytes((tmp_path / "other" / "proxy.pem").read_bytes())
    with pytest.raises(InputError, match="proxy.key is not the key of proxy.pem"):
        check_pki(fed, now=NOW)
    (fed / "proxy.pem").write_bytes(kept)
    (fed / "ca.pem").write_bytes((tmp_path / "other" / "ca.pem").read_bytes())
    with pytest.raises(InputError, match="was not made by the authority"):
        check_pki(fed, now=NOW)
    with pytest.raises(InputError, match="ca.key is not the key of"):
        renew_certificates(fed, now=NOW)


def test_an_authority_that_is_offline_is_asked_for(fed):
    (fed / "ca.key").unlink()
    assert check_pki(fed, now=NOW) == []
    with pytest.raises(InputError, match="bring it back from where it is kept offline"):
        renew_certificates(fed, now=NOW)


@pytest.mark.parametrize("host", ["https://fed", "fed:9443", "", "a b", "-x"])
def test_a_host_that_is_none(tmp_path, host):
    with pytest.raises(InputError, match="--host is"):
        init_pki(tmp_path / "fed", [host])
    assert not (tmp_path / "fed" / "ca.key").exists()


def test_the_commands(call, tmp_path):
    folder = tmp_path / "fed"
    code, out, _ = call(main, "pki", "init", "--dir", folder, "--host", "localhost")
    assert (code, "Fingerprint of the certificate authority" in out) == (0, True)
    code, _, err = call(main, "pki", "init", "--dir", folder, "--host", "localhost")
    assert (code, "has a certificate authority already" in err) == (2, True)
    code, out, _ = call(main, "pki", "renew", "--dir", folder)
    assert (code, out.count("is valid until")) == (0, 2)
