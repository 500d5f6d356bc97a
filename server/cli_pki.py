"""The bodies of `fedward-server pki` and `fedward-server enrol`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

pki = typer.Typer(help="The federation's own certificate authority and certificates.", no_args_is_help=True)
enrol = typer.Typer(help="Take sites into the federation.", no_args_is_help=True)

Folder = Annotated[Path, typer.Option("--dir", help="The federation's folder, made by `pki init`.")]


@pki.command("init")
def init(
    folder: Folder,
    host: Annotated[
        list[str],
        typer.Option("--host", help="Name or address under which sites reach the proxy; repeat it."),
    ],
    port: Annotated[int, typer.Option("--port", help="The proxy's port.")] = 9443,
) -> None:
    """Make a certificate authority, the server's certificates and a server.toml to fill in."""
    from server.pki import init_pki

    fingerprint = init_pki(folder, host, port=port)
    _say(f"Fingerprint of the certificate authority: {fingerprint}.")
    _say(f"Read it to every site by telephone. Keep {folder / 'ca.key'} offline; only renewals need it.")
    _say(f"Next: 'fedward-server enrol accept REQUEST... --dir {folder}'.")


@pki.command("renew")
def renew(folder: Folder) -> None:
    """Make the server's certificates anew with the same authority; sites need nothing."""
    from server.pki import renew_certificates

    for name, end in renew_certificates(folder).items():
        _say(f"{folder / name}.pem is valid until {end:%Y-%m-%d}.")
    _say("Stop the server and resume the run, so that the proxy reads them.")


@enrol.command("accept")
def accept(
    requests: Annotated[
        list[Path], typer.Argument(help="The sites' enrolment.json files.", show_default=False)
    ],
    folder: Folder,
    replace_keys: Annotated[
        bool, typer.Option("--replace", help="Let an enrolled site come with another key.")
    ] = False,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", help="Bind this plan to the roster and send it along.", show_default=False),
    ] = None,
) -> None:
    """Check requests, and write the roster, the sites' SuperNode keys and a bundle for every site."""
    from server.enrolment import accept_requests

    done = accept_requests(requests, folder, replace_keys=replace_keys, plan=plan)
    for member in done.roster:
        note = (
            " (new)" if member.name in done.added else " (replaced)" if member.name in done.replaced else ""
        )
        _say(f"{member.name}: {member.fingerprint}{note}")
    _say("Compare each fingerprint with the site's operator by telephone.")
    if done.plan is None:
        _say(f'roster_sha256 = "{done.roster.digest().hex()}" belongs into [federation] of the plan.')
    else:
        _say(f"{folder / 'plan.toml'} is bound to this roster; its hash is {done.plan.hash}.")
    if done.new_roster:
        _say("A new roster is a new plan hash: every site approves the plan anew.")
    _say(f"Send each site its file of {folder / 'bundles'}.")


def _say(sentence: str) -> None:
    """Print a sentence on one line, whatever the screen's width."""
    Console(soft_wrap=True, highlight=False).print(sentence, markup=False)
