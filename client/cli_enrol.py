"""The body of `fedward-site enrol`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from common.errors import InputError


def enrol(
    out: Annotated[Path, typer.Option("--out", help="The site's folder, for keys and site.toml.")],
    name: Annotated[str, typer.Option("--name", help="The site's name.", show_default=False)] = "",
    server: Annotated[
        str, typer.Option("--server", help="Host and port of the server's TLS proxy.", show_default=False)
    ] = "",
    public_units: Annotated[
        int,
        typer.Option(
            "--public-units",
            help="How many records (of the plan's unit) the site has, as a public number: its weight, and what a "
            "private plan's noise is divided by.",
            show_default=False,
        ),
    ] = 0,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", help="The server's answer: put its files into --out.", show_default=False),
    ] = None,
) -> None:
    """Make keys and a request for the server; then, with --bundle, take in what the server answered."""
    from client.enrolment import enrol as make_request
    from client.enrolment import install_bundle
    from common.roster import fingerprint

    console = Console(soft_wrap=True, highlight=False)

    def say(sentence: str) -> None:
        console.print(sentence, markup=False)

    if bundle is not None:
        got = install_bundle(bundle, out, say=say)
        say("Compare that fingerprint with the server's operator by telephone before the first run.")
        say(f"The site's folder {out} is ready for {got.address}; approve the plan next.")
        return
    if not name or not server:
        raise InputError(
            "Give --name and --server to make a request, or --bundle to take in the server's answer."
        )
    if public_units == 0:
        raise InputError(
            "--public-units is missing: about how many records, documents or patients (the plan's unit) the site has. "
            "Everybody sees this number; it is the site's weight, and a private plan divides its noise by it."
        )
    request = make_request(name=name, server=server, out=out, public_units=public_units)
    say(f"Fingerprint of {name}'s identity key: {fingerprint(request.member.identity_key)}.")
    say(f"Send {out / 'enrolment.json'} to the server; the private keys stay in {out}.")
