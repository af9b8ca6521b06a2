"""Entry point: finds the command, runs it, and turns whatever happens into one answer.

Commands are imported when they are called and not before, so ``--help`` answers at once
and a node imports nothing before its environment is clean.
"""

from __future__ import annotations

import sys
import traceback
from typing import NoReturn

import click

from cloister import __version__
from cloister.cli.exit_codes import ExitCode, exit_code_of
from cloister.cli.lazy import LazyGroup
from cloister.cli.output import show_error
from cloister.errors import CloisterError

COMMANDS = {
    "audit": "Check what happened in a run, and read it.",
    "custodian": "Keep a party's consents, and warrant its nodes.",
    "data": "Seal a party's records, look at them, check them.",
    "demo": "Train, seal and open a model with three simulated nodes.",
    "init": "Write a deployment to edit.",
    "measure": "Print what a node of each role would measure.",
    "model": "Open a sealed model, or use it in an attested node.",
    "pccs": "Serve a deployment's simulated collateral.",
    "plan": "Check, show, sign, amend or withdraw a plan.",
    "policy": "Say what a policy accepts, or write one.",
    "quote": "Show a quote, or verify it.",
    "recipient": "Open a sealed model in an attested node.",
    "run": "Start all nodes of a plan on this machine.",
    "server": "Start the server node of a plan.",
    "worker": "Start one party's worker node.",
}


cloister = click.version_option(__version__, prog_name="cloister")(
    LazyGroup(
        "cloister",
        package="cloister.cli.commands",
        summaries=COMMANDS,
        help="Confidential federated learning between parties who trust no host.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
)


def main() -> NoReturn:
    """Runs the command line and exits with a documented code."""
    as_json = "--json" in sys.argv[1:]
    try:
        # click returns the status of a command that ends with `click.exceptions.Exit`;
        # all others return None.
        ended: object = cloister.main(standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(ExitCode.INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(ExitCode.USAGE)
    except CloisterError as error:
        show_error(error, as_json=as_json)
        sys.exit(exit_code_of(error))
    except BrokenPipeError:
        sys.exit(ExitCode.INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the process edge
        _show_bug(error)
        sys.exit(ExitCode.INTERNAL)
    sys.exit(ended if isinstance(ended, int) else ExitCode.OK)


def _show_bug(error: Exception) -> None:
    """Says where a bug is; its words might quote data, so they are left out."""
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{f.name} {f.filename}:{f.lineno}" for f in frames[-1:-5:-1])
    click.echo(f"internal error: {type(error).__name__} in {where}", err=True)
    click.echo("This is a bug in Cloister or in a task; please report it.", err=True)
