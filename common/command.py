"""How every fedward command ends: exit code 0, or one clear sentence and 2 (bad input) or 1 (failure)."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click
import typer
from rich.console import Console

from common.errors import FedwardError

# Flower reports usage and looks for updates unless told not to; a hospital's process opens no such connection.
QUIET_FLOWER = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}

_INTERRUPTED = 130
"""The shell's exit code for a command that was stopped by Ctrl-C."""


def run_command(app: typer.Typer) -> NoReturn:
    """Run a command line and exit; a fedward error becomes its sentence on standard error, without a traceback."""
    for name, value in QUIET_FLOWER.items():
        os.environ.setdefault(name, value)
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        code = app(standalone_mode=False)
        if code == _INTERRUPTED:
            # typer turns Ctrl-C into this exit code by itself.
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except FedwardError as error:
        errors.print(str(error), markup=False)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        errors.print("Stopped. A run that was under way can be continued with --resume.")
        sys.exit(_INTERRUPTED)
    except OSError as error:
        # A full disk or a forbidden folder is the user's to mend, so it is told without a traceback.
        errors.print(f"{error.filename or 'A file'}: {error.strerror or type(error).__name__}.", markup=False)
        sys.exit(1)
