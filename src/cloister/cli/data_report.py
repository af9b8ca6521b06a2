"""What is said of a sealed data set: what it holds, whose it is, what a plan needs."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from cloister.cli.data_progress import showing_records
from cloister.cli.data_sealing import seal_for
from cloister.cli.output import Json, write_json
from cloister.cli.places import CustodianPlace
from cloister.errors import ConfigError
from cloister.plan.plan import Plan
from cloister.storage.manifest_signature import SignedManifest
from cloister.storage.record_stream import RecordStream
from cloister.storage.records import Field
from cloister.storage.sealed_data import DataPin, UnopenedData


def seal_and_show(
    place: CustodianPlace,
    stream: RecordStream,
    path: Path,
    *,
    key: str | None,
    as_json: bool,
) -> None:
    """Seals records, and says what the plan needs: two lines of the party's section.

    Args:
        place: The party's custodian.
        stream: The records.
        path: Where the sealed data set goes.
        key: Name or label of the data key; None for the only active one.
        as_json: Whether the result is for machines.

    Raises:
        CloisterError: See `cli.data_sealing.seal_for`.
    """
    console = Console(stderr=True, highlight=False)
    with showing_records("sealing", total=stream.total, console=console) as tell:
        sealed = seal_for(place, stream, path=path, key=key, on_records=tell)
    manifest = sealed.manifest
    if as_json:
        write_json(
            {
                "file": str(path),
                "party": place.party,
                "data": sealed.digest,
                "data_key": manifest.key,
                "source": manifest.source,
                "train": manifest.train,
                "held_out": manifest.held_out,
                "size_bytes": sealed.size_bytes,
            }
        )
        return
    click.echo(f'data = "{sealed.digest}"')
    click.echo(f'data_key = "{manifest.key}"')
    click.echo(
        f"sealed {manifest.train} train and {manifest.held_out} held-out records into"
        f" {path}, {sealed.size_bytes} bytes; these lines belong to {place.party} in"
        " the plan",
        err=True,
    )


def check_planned(unopened: UnopenedData, plan: Plan, party: str) -> str:
    """Returns what a data set is in a plan, in words, if it is the party's in it.

    Args:
        unopened: The data set.
        plan: The plan.
        party: Whose it should be.

    Raises:
        ConfigError: If the plan has no such party, or none with sealed data
            (``data-not-planned``).
        StorageError: If it is another data set, another owner's, or under another key.
    """
    found = plan.find_party(party)
    if found.data_key is None:
        raise ConfigError(
            f"the plan knows of no sealed data of {party!r}",
            code="data-not-planned",
            expected="'data_key' in the party's section",
            got=f"a {found.role} without it",
        )
    if found.data is None:
        # A recipient predicts on whatever its party sealed under that key.
        unopened.check_owner(owner=found.key, key=found.data_key)
        return "sealed under the data key"
    pin = DataPin(digest=found.data, owner=found.key, key=found.data_key)
    unopened.check_pin(pin)
    return "the pinned data"


def manifest_json(signed: SignedManifest, *, size_bytes: int) -> Json:
    """Returns a manifest as machines read it."""
    manifest = signed.manifest
    return {
        "data": signed.digest,
        "data_key": manifest.key,
        "owner": manifest.owner,
        "source": manifest.source,
        "train": manifest.train,
        "held_out": manifest.held_out,
        "fields": [
            {"name": f.name, "dtype": f.dtype, "shape": f.shape, "below": f.below}
            for f in manifest.schema.fields
        ],
        "record_bytes": manifest.schema.record_bytes,
        "size_bytes": size_bytes,
    }


def manifest_lines(signed: SignedManifest, *, size_bytes: int) -> list[str]:
    """Returns a manifest as people read it, line by line."""
    manifest = signed.manifest
    return [
        f"data      {signed.digest}",
        f"data key  {manifest.key}",
        f"owner     {manifest.owner}",
        f"made of   {manifest.source}",
        f"records   {manifest.train} train, {manifest.held_out} held-out",
        *(f"field     {_field(field)}" for field in manifest.schema.fields),
        f"size      {size_bytes} bytes, {manifest.schema.record_bytes} a record",
    ]


def _field(field: Field) -> str:
    shape = " x ".join(map(str, field.shape))
    bound = "" if field.below is None else f", below {field.below}"
    return f"{field.name}: {field.dtype}{f' {shape}' if shape else ''}{bound}"
