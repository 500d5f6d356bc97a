"""`fedward-server enrol accept`: from the sites' requests to the roster, their SuperNode keys and their bundles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.enrolment import Bundle, EnrolmentRequest, parse_supernode_key, read_request
from common.errors import InputError
from common.files import write_atomically
from common.plan import Plan, read_plan
from common.roster import Roster, read_roster, write_roster
from server.pki import check_pki


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """What `accept_requests` has done.

    Attributes:
        roster: The roster as it is now.
        added: Sites that are new.
        replaced: Sites whose key or public units changed.
        new_roster: Whether the roster is another one, so that every site must approve anew.
        plan: The plan that was bound to the roster; None where there is none.
    """

    roster: Roster
    added: tuple[str, ...]
    replaced: tuple[str, ...]
    new_roster: bool
    plan: Plan | None


def accept_requests(
    paths: Sequence[Path], folder: Path, *, replace_keys: bool = False, plan: Path | None = None
) -> Enrolled:
    """Take sites into the federation's folder: roster, SuperNode keys, and a bundle for every site.

    Args:
        paths: The requests; all are checked before anything is written.
        folder: The folder of `fedward-server pki init`.
        replace_keys: Whether a site that is enrolled may come with another key.
        plan: A plan, which is bound to the new roster and goes into every bundle.

    Raises:
        InputError: A request is not usable, two are of the same site, or one brings another key.
    """
    check_pki(folder)
    requests = [read_request(path) for path in paths]
    path = folder / "roster.toml"
    before = read_roster(path) if path.exists() else None
    changes = {request.member.name: _change(request, before, folder, replace_keys) for request in requests}
    if len(changes) < len(requests):
        raise InputError("Two of the requests are of the same site; give the newer one.")
    kept = [member for member in before or () if member.name not in changes]
    roster = Roster((*kept, *(request.member for request in requests)))
    _require_own_supernode_keys(requests, folder)
    bound = _bound(read_plan(plan), roster) if plan else None
    for request in requests:
        write_atomically(site_key_path(folder, request.member.name), request.supernode_key + "\n")
    write_roster(roster, path)
    if bound is not None:
        write_atomically(folder / "plan.toml", bound.to_toml())
    write_bundles(folder, roster)
    return Enrolled(
        roster=roster,
        added=tuple(name for name, change in changes.items() if change == "added"),
        replaced=tuple(name for name, change in changes.items() if change == "replaced"),
        new_roster=before is None or before.digest() != roster.digest(),
        plan=bound,
    )


def site_keys(folder: Path, roster: Roster) -> dict[str, str]:
    """Return each member's SuperNode key in OpenSSH format.

    Raises:
        InputError: A member has none, so that it could not connect.
    """
    keys = {}
    for member in roster:
        path = site_key_path(folder, member.name)
        if not path.is_file():
            raise InputError(
                f"The roster lists {member.name}, and {path} does not exist; run 'fedward-server enrol accept' with "
                "the site's enrolment.json."
            )
        keys[member.name] = path.read_text("utf-8").strip()
        try:
            parse_supernode_key(keys[member.name])
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    return keys


def write_bundles(folder: Path, roster: Roster) -> None:
    """Write what every site is sent: all get the new roster, also those whose keys are as they were."""
    plan_path = folder / "plan.toml"
    plan = plan_path.read_text("utf-8") if plan_path.exists() else ""
    if plan and read_plan(plan_path).federation.roster_sha256 != roster.digest().hex():
        # A plan for another roster would be refused at the site; it gets the new one with the next bundle.
        plan = ""
    for member in roster:
        bundle = Bundle(
            site=member.name,
            address=(folder / "address").read_text("utf-8").strip(),
            ca=(folder / "ca.pem").read_text("utf-8"),
            roster=(folder / "roster.toml").read_text("utf-8"),
            plan=plan,
        )
        write_atomically(folder / "bundles" / f"{member.name}.bundle.json", bundle.to_json())


def site_key_path(folder: Path, name: str) -> Path:
    """Return where a site's SuperNode key is kept; names of the roster are safe as names of files."""
    return folder / "sites" / f"{name}.pub"


def _change(request: EnrolmentRequest, before: Roster | None, folder: Path, replace_keys: bool) -> str:
    """Return `added`, `replaced` or `same`.

    Raises:
        InputError: The site is enrolled with another key, and nobody said that this is on purpose.
    """
    member = request.member
    if before is None or member.name not in before:
        return "added"
    old, path = before.member(member.name), site_key_path(folder, member.name)
    same_key = old.identity_key == member.identity_key
    same_node = not path.exists() or path.read_text("utf-8").strip() == request.supernode_key
    if same_key and same_node and old.public_units == member.public_units:
        return "same"
    if not replace_keys:
        consequence = "a new roster means a new plan hash, which every site approves anew"
        what = "identity key"
        if same_key and same_node:
            what = "number of public_units"
        elif same_key:
            what, consequence = "SuperNode key", "the roster stays as it is, and its old key is taken out"
        raise InputError(
            f"{member.name} is enrolled already with another {what}. Ask its operator by telephone whether it was "
            f"changed on purpose, and add --replace then: {consequence}."
        )
    return "replaced"


def _require_own_supernode_keys(requests: Sequence[EnrolmentRequest], folder: Path) -> None:
    """Raise if two sites would connect with the same SuperNode key."""
    owners = {path.read_text("utf-8").strip(): path.stem for path in (folder / "sites").glob("*.pub")}
    for request in requests:
        owner = owners.setdefault(request.supernode_key, request.member.name)
        if owner != request.member.name:
            raise InputError(
                f"{owner} and {request.member.name} have the same SuperNode key; each makes its own."
            )


def _bound(plan: Plan, roster: Roster) -> Plan:
    """Return the plan with the roster's hash in it."""
    return replace(plan, federation=replace(plan.federation, roster_sha256=roster.digest().hex()))
