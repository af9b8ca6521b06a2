"""A party's records, which a node uses only if they are those that the plan pins.

Found before the node asks for its warrant, and opened after its keys came: what is
missing or of another plan is known before this node takes the place of one before it.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from cloister.cli.places import Place
from cloister.errors import ConfigError, StorageError
from cloister.federation.task import Task
from cloister.federation.task_loading import task_code
from cloister.storage.keys import KeySource
from cloister.storage.raw_shard import RawShard, open_raw_shard
from cloister.storage.records import DataSource, Schema
from cloister.storage.sealed_data import DataPin, UnopenedData, read_sealed_data


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundData:
    """The records that a plan pins, before they are opened.

    Attributes:
        found: A sealed data set; or a raw shard, where the plan names no data key.
        schema: The task's.
    """

    found: UnopenedData | RawShard
    schema: Schema

    def open(self, keys: KeySource) -> DataSource:
        """Returns the records.

        Raises:
            ConfigError: If they are sealed, and the node has no data key.
            StorageError: If they do not open with it, or are not the task's.
        """
        if isinstance(self.found, UnopenedData):
            return self.found.open(keys.key("data"), schema=self.schema)
        return self.found


def find_data(place: Place, task: Task) -> FoundData:
    """Returns the party's data, after checking that it is what the plan pins.

    Of sealed data that is the manifest; each record is authenticated when it is read.
    A raw shard is read into memory once: what was hashed is what is used.

    Raises:
        ConfigError: If the site names no data.
        StorageError: If the data is damaged, not sealed where the plan says that it is
            (``data-not-sealed``) or sealed where it does not (``data-sealed``), or not
            what the plan pins (``data-differs``).
    """
    if place.site.paths.data is None:
        raise ConfigError(
            f"the site of {place.site.party!r} names no data",
            code="data-missing",
            expected="[paths] data in site.toml",
        )
    schema = schema_of(place, task)
    path = place.at_site(place.site.paths.data)
    party = place.party
    if party.data is None:
        raise RuntimeError("the plan pins no data of this party")
    if party.data_key is not None:
        check_sealed(path)
        pin = DataPin(digest=party.data, owner=party.key, key=party.data_key)
        unopened = read_sealed_data(path)
        return FoundData(found=unopened.check_pin(pin), schema=schema)
    shard = open_raw_shard(check_raw(path), schema)
    if shard.digest != party.data:
        raise StorageError(
            f"the data of {place.site.party!r} is not what the plan pins",
            code="data-differs",
            expected=party.data,
            got=shard.digest,
            remedy="Restore the data, or have all parties sign a plan that pins it.",
        )
    return FoundData(found=shard, schema=schema)


def find_recipient_data(place: Place, task: Task) -> FoundData | None:
    """Returns the records that a recipient evaluates on; None where the plan pins none.

    What comes of them stands in a log that the host reads. The site file is the host's
    too: records of its choice, one after another, would show it the model bit by bit.

    Raises:
        ConfigError: If the site names data that the plan does not, or the other way
            round.
        StorageError: If the data is damaged, or not what the plan pins.
    """
    if place.party.data is not None:
        return find_data(place, task)
    if place.site.paths.data is not None:
        raise ConfigError(
            f"the plan pins no data of {place.site.party!r}",
            code="data-not-pinned",
            expected="no [paths] data in site.toml",
            got=place.site.paths.data,
            remedy="Remove it, or have all parties sign a plan that pins it.",
        )
    return None


def schema_of(place: Place, task: Task) -> Schema:
    """Returns what a record of the task's data holds.

    Raises:
        ConfigError: If the task cannot say it.
    """
    with task_code(
        place.plan.task.file, "naming its schema", simulated=place.plan.simulated
    ):
        return task.schema()


def check_sealed(path: Path) -> Path:
    """Returns the path of a sealed data set, which is one file.

    Raises:
        StorageError: If it is a directory, as raw shards are (``data-not-sealed``).
    """
    if _mode(path) == stat.S_IFDIR:
        raise StorageError(
            f"the data in {path} is not sealed",
            code="data-not-sealed",
            expected="a file that `cloister data seal` wrote: the plan names its key",
            got="a directory",
            remedy="Seal the data, and correct the data path in the site file.",
        )
    return path


def check_raw(path: Path) -> Path:
    """Returns the path of a raw shard, which is a directory.

    Raises:
        StorageError: If it is a file, as sealed data sets are (``data-sealed``).
    """
    if _mode(path) == stat.S_IFREG:
        raise StorageError(
            f"the plan names no key for the data in {path}",
            code="data-sealed",
            expected="a directory of raw records: the plan has no data_key",
            got="a file",
            remedy="Have all parties sign a plan with the data and data_key that"
            " `cloister data info` shows.",
        )
    return path


def _mode(path: Path) -> int:
    """Returns the kind of a file; 0 where it cannot be looked at.

    Whoever opens it says why.
    """
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except (OSError, ValueError):
        return 0
