"""`fedward-site`: a data holder's side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from common.command import run_command

app = typer.Typer(
    name="fedward-site",
    help="Run a site of a federation: its keys and its audit log.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
keys = typer.Typer(help="The site's identity key.", no_args_is_help=True)
audit = typer.Typer(help="The site's audit log.", no_args_is_help=True)
app.add_typer(keys, name="keys")
app.add_typer(audit, name="audit")
console = Console()

KeyFile = Annotated[Path, typer.Argument(help="The key file, PEM.", show_default=False)]


@keys.command("new")
def new_key(
    path: KeyFile,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Ask for a passphrase to encrypt the file.")
    ] = False,
) -> None:
    """Make an identity key (Ed25519, file mode 0600) and print what the roster needs of it."""
    from client.keys import make_identity_key

    secret = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True) if passphrase else None
    public = make_identity_key(path, passphrase=secret.encode() if secret else None)
    _show(public)
    console.print(
        f"The private key is in {path}; it never leaves this host. Keep a copy offline.", soft_wrap=True
    )


@keys.command("show")
def show_key(
    path: KeyFile,
    passphrase: Annotated[bool, typer.Option("--passphrase", help="Ask for the file's passphrase.")] = False,
) -> None:
    """Print the public half of an identity key and its fingerprint, to be compared out of band."""
    from client.keys import load_identity_key

    secret = typer.prompt("Passphrase", hide_input=True) if passphrase else None
    _show(
        load_identity_key(path, passphrase=secret.encode() if secret else None)
        .public_key()
        .public_bytes_raw()
    )


@audit.command("verify")
def verify_audit(
    path: Annotated[Path, typer.Argument(help="The audit log, audit.jsonl.", show_default=False)],
    key: Annotated[Path | None, typer.Option(help="The identity key that signed it.")] = None,
) -> None:
    """Check that no line of an audit log was changed, removed or put in."""
    from client.keys import load_identity_key
    from common.audit_log import verify

    public = load_identity_key(key).public_key() if key else None
    entries = verify(path, key=public)
    signed = "chained and signed by this key" if key else "chained (give --key to check the signatures)"
    console.print(f"{path}: {len(entries)} lines, {signed}.", soft_wrap=True)


def main() -> None:
    """Run the command line."""
    run_command(app)


def _show(public: bytes) -> None:
    """Print a public key and its fingerprint."""
    from common.roster import fingerprint

    console.print(f"identity_key = {public.hex()}", soft_wrap=True, highlight=False)
    console.print(f"fingerprint  = {fingerprint(public)}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
