"""A site's half of enrolment: keys that stay, a signed request, and a bundle that is checked."""

from __future__ import annotations

import json
import stat
import tomllib
from datetime import UTC, datetime

import pytest

from client.cli import main
from client.enrolment import enrol, install_bundle, require_address
from client.keys import load_identity_key
from client.settings import read_settings
from common.enrolment import Bundle, read_request
from common.errors import InputError
from common.roster import Member, Roster, write_roster
from server.pki import init_pki


@pytest.fixture
def site(tmp_path):
    enrol(name="st-mary", server="fed.example.org:9443", out=tmp_path / "site", public_units=40)
    return tmp_path / "site"


@pytest.fixture
def bundle(site, tmp_path):
    """A function that makes the server's answer as a file."""
    init_pki(tmp_path / "fed", ["fed.example.org"])

    def make(*, name="st-mary", member="st-mary", key=None, **changes):
        own = key or load_identity_key(site / "identity.pem").public_key().public_bytes_raw()
        write_roster(Roster((Member(name=member, identity_key=own),)), tmp_path / "roster.toml")
        fields = {
            "site": name,
            "address": "fed.example.org:9443",
            "ca": (tmp_path / "fed" / "ca.pem").read_text(),
            "roster": (tmp_path / "roster.toml").read_text(),
        }
        path = tmp_path / "bundle.json"
        path.write_text(Bundle(**(fields | changes)).to_json())
        return path

    return make


def test_private_keys_stay_and_are_private(site):
    request = (site / "enrolment.json").read_text()
    for name in ("identity.pem", "supernode.key"):
        assert stat.S_IMODE((site / name).stat().st_mode) == 0o600
        body = "".join((site / name).read_text().splitlines()[1:-1])
        assert body[:40] not in request
    assert "PRIVATE" not in request
    assert stat.S_IMODE(site.stat().st_mode) == 0o700


def test_flower_takes_the_supernode_key(site):
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    from flwr.supercore.primitives.asymmetric import uses_nist_ec_curve

    key = load_ssh_private_key((site / "supernode.key").read_bytes(), None)
    assert uses_nist_ec_curve(key.public_key())


def test_the_skeleton_says_all_but_the_sites_own_limits(site):
    table = tomllib.loads((site / "site.toml").read_text())
    assert table["server"]["address"] == "fed.example.org:9443"
    assert set(table) == {"site", "keys", "policy", "agent", "server"}
    assert "max_epsilon" not in table["policy"]


def test_the_skeleton_is_a_site_file_once_it_is_filled_in(site):
    path = site / "site.toml"
    with pytest.raises(InputError, match="max_epsilon is missing; a site must say it itself"):
        read_settings(path)
    lines = (
        path.read_text()
        .replace("# max_epsilon =", "max_epsilon = 4.0")
        .replace("# max_delta =", "max_delta = 1e-5")
    )
    keys = ("[ledger]", "path =", "witness =", "account =", "unit =", "delta =", "declaration =")
    for key in keys:
        lines = lines.replace(f"# {key}", key)
    path.write_text(lines)
    settings = read_settings(path)
    assert settings.server.address == "fed.example.org:9443"
    assert settings.server.supernode_key == site / "supernode.key"
    assert settings.ledger.account == "oncology"


def test_enrolling_again_keeps_keys_and_site_file(site):
    before = {path.name: path.read_bytes() for path in site.iterdir() if path.name != "enrolment.json"}
    enrol(name="st-mary", server="fed.example.org:9443", out=site, public_units=41)
    assert {
        path.name: path.read_bytes() for path in site.iterdir() if path.name != "enrolment.json"
    } == before
    assert read_request(site / "enrolment.json").member.public_units == 41


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "st-anne", "the signatures are not those of st-anne's keys"),
        ("public_units", 9, "the signatures are not those"),
        ("signature", "00", "the signatures are not those"),
        ("supernode_signature", "00", "the signatures are not those"),
        ("supernode_key", "ssh-ed25519 AAAA", "ECDSA P-384"),
        ("identity_key", "xyz", "64 lower-case"),
        ("created", "yesterday", "ISO 8601"),
        ("format", "fedward enrolment v2", "not an enrolment request"),
        ("extra", 1, "unknown key 'extra'"),
    ],
)
def test_a_request_that_was_changed_is_refused(site, field, value, message):
    path = site / "enrolment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(InputError, match=message):
        read_request(path)


def test_a_key_that_is_somebody_elses_cannot_be_enrolled(site, tmp_path):
    """A request with another site's SuperNode key lacks that key's signature."""
    enrol(name="st-anne", server="h:1", out=tmp_path / "other")
    stolen = json.loads((site / "enrolment.json").read_text())["supernode_key"]
    path = tmp_path / "other" / "enrolment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"supernode_key": stolen}))
    with pytest.raises(InputError, match="the signatures are not those"):
        read_request(path)


def test_a_request_from_the_future_tells_of_the_clock(site):
    with pytest.raises(InputError, match=r"dated .* clock says 2020-01-01 00:00; set both clocks by NTP"):
        read_request(site / "enrolment.json", now=datetime(2020, 1, 1, tzinfo=UTC))


def test_the_bundle_is_put_into_the_folder(site, bundle):
    said = []
    install_bundle(bundle(plan="seed = 1\n"), site, say=said.append)
    assert (site / "server-ca.pem").read_text().startswith("-----BEGIN CERTIFICATE")
    assert (site / "plan.toml").read_text() == "seed = 1\n"
    assert any("Fingerprint" in sentence for sentence in said)
    install_bundle(bundle(plan="seed = 2\n"), site, say=said.append)
    assert any("must be approved anew" in sentence for sentence in said)


def test_a_bundle_of_another_site_or_key_is_refused_and_nothing_is_written(site, bundle):
    cases = [
        ({"key": bytes(32)}, "lists another identity key for st-mary"),
        ({"name": "st-anne"}, "has no member 'st-anne'"),
        ({"ca": "nothing"}, "not a certificate"),
        ({"roster": "x = 1"}, "its roster cannot be read"),
        ({"address": "https://h:1"}, "without https://"),
    ]
    for changes, message in cases:
        with pytest.raises(InputError, match=message):
            install_bundle(bundle(**changes), site)
    assert not (site / "roster.toml").exists()


def test_an_expired_authority_is_told_with_its_date(site, bundle, tmp_path):
    init_pki(tmp_path / "old", ["h"], now=datetime(2001, 2, 3, tzinfo=UTC))
    with pytest.raises(InputError, match=r"authority expired on 2011-02-01 \(UTC\); ask the server"):
        install_bundle(bundle(ca=(tmp_path / "old" / "ca.pem").read_text()), site)


def test_a_key_that_others_can_read_is_refused(site):
    (site / "supernode.key").chmod(0o640)
    with pytest.raises(InputError, match="chmod 600"):
        enrol(name="st-mary", server="h:1", out=site)


@pytest.mark.parametrize("address", ["", "host", "host:", "host:0", "host:70000", "https://host:1", "a b:1"])
def test_an_address_that_is_none(address):
    with pytest.raises(InputError, match="host:port"):
        require_address(address)


def test_addresses():
    assert require_address("fed.example.org:9443") == ("fed.example.org", 9443)
    assert require_address("[::1]:1") == ("::1", 1)


def test_the_command(call, site, bundle, tmp_path):
    code, out, _ = call(
        main,
        "enrol",
        "--name",
        "st-joan",
        "--server",
        "h:1",
        "--public-units",
        40,
        "--out",
        tmp_path / "joan",
    )
    assert (code, "Send" in out, "Fingerprint of st-joan" in out) == (0, True, True)
    code, out, _ = call(main, "enrol", "--bundle", bundle(), "--out", site)
    assert (code, "Compare that fingerprint" in out) == (0, True)
    code, _, err = call(main, "enrol", "--out", site)
    assert (code, "Give --name and --server" in err) == (2, True)
