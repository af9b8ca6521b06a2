"""``cloister custodian init``: makes a party's custodian."""

from __future__ import annotations

from pathlib import Path

import click

from cloister.cli.custodian_files import INTEL_COLLATERAL, write_custodian
from cloister.cli.hardening import harden_process
from cloister.cli.names import check_name
from cloister.cli.output import write_json
from cloister.cli.passphrases import new_passphrase
from cloister.cli.whole_directory import whole_directory
from cloister.plan.site import parse_address

DEFAULT_ADDRESS = "127.0.0.1:7003"


@click.command("init")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--party", required=True, help="The party, as the plan names it.")
@click.option(
    "--address",
    metavar="HOST:PORT",
    default=DEFAULT_ADDRESS,
    show_default=True,
    help="Where it listens for the party's nodes.",
)
@click.option(
    "--keyring-passphrase",
    is_flag=True,
    help="Seal the keyring to a passphrase, and ask for it.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def command(
    *,
    directory: Path,
    party: str,
    address: str,
    keyring_passphrase: bool,
    as_json: bool,
) -> None:
    """Make a custodian in DIRECTORY, and print the party's public key for the plan.

    The private key stays there. Whoever reads it speaks for the party.

    The keyring seals the keys that the party will keep here. Without a passphrase an
    age identity opens it, keyring-identity.txt: move that to a token or another disk,
    and say so in custodian.toml.
    """
    harden_process()  # the party's key is about to be in its memory
    check_name(party)
    listen = str(parse_address(address))
    passphrase = new_passphrase() if keyring_passphrase else None
    with whole_directory(directory) as draft:
        key = write_custodian(
            draft,
            party=party,
            address=listen,
            collateral=INTEL_COLLATERAL,
            passphrase=passphrase,
        )
    if as_json:
        write_json({"party": party, "key": key, "directory": str(directory)})
    else:
        click.echo(key)
        click.echo(
            f"made {directory}; put the key into the plan, and see to [collateral] in"
            f" custodian.toml. Then: cloister plan sign PLAN --custodian {directory}",
            err=True,
        )
