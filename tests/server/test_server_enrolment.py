"""The server's half of enrolment: requests in, roster, SuperNode keys and bundles out."""

from __future__ import annotations

import shutil

import pytest

from client.enrolment import enrol
from common.enrolment import read_bundle
from common.errors import InputError
from common.plan import read_plan
from common.roster import read_roster
from server.cli import main
from server.enrolment import accept_requests, site_keys
from server.pki import init_pki


@pytest.fixture
def fed(tmp_path):
    init_pki(tmp_path / "fed", ["fed.example.org"])
    return tmp_path / "fed"


@pytest.fixture
def request_of(tmp_path):
    """A function that returns a site's request."""

    def make(name, folder=None, **more):
        out = tmp_path / (folder or name)
        enrol(name=name, server="fed.example.org:9443", out=out, **more)
        return out / "enrolment.json"

    return make


def test_accepting_makes_everything(fed, request_of, plan_file):
    done = accept_requests(
        [request_of("st-mary"), request_of("st-anne", public_units=7)], fed, plan=plan_file
    )
    assert done.added == ("st-mary", "st-anne")
    roster = read_roster(fed / "roster.toml")
    assert [(member.name, member.public_units) for member in roster] == [("st-anne", 7), ("st-mary", 1)]
    assert set(site_keys(fed, roster)) == {"st-anne", "st-mary"}
    plan = read_plan(fed / "plan.toml")
    roster.require_digest(plan.federation.roster_sha256)
    bundle = read_bundle(fed / "bundles" / "st-mary.bundle.json")
    assert bundle.address == "fed.example.org:9443"
    assert bundle.plan == (fed / "plan.toml").read_text()


def test_a_later_site_changes_every_bundle(fed, request_of, plan_file):
    accept_requests([request_of("st-mary")], fed, plan=plan_file)
    accept_requests([request_of("st-anne")], fed)
    bundle = read_bundle(fed / "bundles" / "st-mary.bundle.json")
    assert "st-anne" in bundle.roster
    # The plan was bound to the old roster; a site would refuse the pair.
    assert bundle.plan == ""


def test_the_same_request_again_changes_nothing(fed, request_of):
    path = request_of("st-mary")
    accept_requests([path], fed)
    before = (fed / "roster.toml").read_bytes()
    done = accept_requests([path], fed)
    assert (done.added, done.replaced) == ((), ())
    assert (fed / "roster.toml").read_bytes() == before


def test_another_key_needs_replace(fed, request_of):
    accept_requests([request_of("st-mary")], fed)
    before = {path: path.read_bytes() for path in fed.rglob("*") if path.is_file()}
    again = request_of("st-mary", folder="second")
    with pytest.raises(
        InputError, match="enrolled already with another identity key.*new plan hash.*approves anew"
    ):
        accept_requests([again], fed)
    assert {path: path.read_bytes() for path in fed.rglob("*") if path.is_file()} == before
    assert accept_requests([again], fed, replace_keys=True).replaced == ("st-mary",)
    assert (fed / "roster.toml").read_bytes() != before[fed / "roster.toml"]


def test_a_new_supernode_key_leaves_the_roster_as_it_is(fed, request_of, tmp_path):
    accept_requests([request_of("st-mary")], fed)
    before = (fed / "roster.toml").read_bytes(), (fed / "sites" / "st-mary.pub").read_bytes()
    (tmp_path / "st-mary" / "supernode.key").unlink()
    with pytest.raises(InputError, match="another SuperNode key.*the roster stays as it is"):
        accept_requests([request_of("st-mary")], fed)
    done = accept_requests([request_of("st-mary")], fed, replace_keys=True)
    assert (done.replaced, done.new_roster) == (("st-mary",), False)
    assert (fed / "roster.toml").read_bytes() == before[0]
    assert (fed / "sites" / "st-mary.pub").read_bytes() != before[1]


def test_other_units_need_replace_too(fed, request_of):
    accept_requests([request_of("st-mary")], fed)
    with pytest.raises(InputError, match="another number of public_units"):
        accept_requests([request_of("st-mary", public_units=1000)], fed)


def test_one_bad_request_leaves_everything_as_it_was(fed, request_of):
    good, bad = request_of("st-mary"), request_of("st-anne")
    bad.write_text(bad.read_text().replace('"public_units": 1', '"public_units": 2'))
    with pytest.raises(InputError, match="signatures"):
        accept_requests([good, bad], fed)
    assert not (fed / "roster.toml").exists()
    assert list((fed / "sites").iterdir()) == []


def test_two_sites_with_one_key(fed, request_of, tmp_path):
    accept_requests([request_of("st-mary")], fed)
    shutil.copytree(tmp_path / "st-mary", tmp_path / "copy")
    (tmp_path / "copy" / "identity.pem").unlink()
    with pytest.raises(InputError, match="st-mary and st-anne have the same SuperNode key"):
        accept_requests([request_of("st-anne", folder="copy")], fed)


def test_two_requests_of_one_site(fed, request_of):
    path = request_of("st-mary")
    with pytest.raises(InputError, match="Two of the requests"):
        accept_requests([path, path], fed)


def test_a_member_without_a_supernode_key_is_named(fed, request_of):
    accept_requests([request_of("st-mary")], fed)
    (fed / "sites" / "st-mary.pub").unlink()
    with pytest.raises(InputError, match="The roster lists st-mary, and .*st-mary.pub does not exist"):
        site_keys(fed, read_roster(fed / "roster.toml"))


def test_the_command(call, fed, request_of, plan_file, tmp_path):
    code, out, _ = call(main, "enrol", "accept", request_of("st-mary"), "--dir", fed, "--plan", plan_file)
    assert code == 0
    assert "Compare each fingerprint" in out
    assert "approves the plan anew" in out
    code, _, err = call(main, "enrol", "accept", tmp_path / "none.json", "--dir", fed)
    assert (code, "does not exist" in err) == (2, True)
