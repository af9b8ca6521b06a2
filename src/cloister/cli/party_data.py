"""A party's records, which a node uses only if they are those that the plan pins."""

from __future__ import annotations

from cloister.cli.places import Place
from cloister.errors import ConfigError, StorageError
from cloister.federation.task import Task
from cloister.federation.task_loading import task_code
from cloister.storage.raw_shard import RawShard, open_raw_shard


def open_data(place: Place, task: Task) -> RawShard:
    """Returns the party's data, after checking that it is what the plan pins.

    What was hashed is what is used: it was read into memory once.

    Raises:
        ConfigError: If the site names no data.
        StorageError: If the data is damaged, or not what the plan pins.
    """
    if place.site.paths.data is None:
        raise ConfigError(
            f"the site of {place.site.party!r} names no data",
            code="data-missing",
            expected="[paths] data in site.toml",
        )
    with task_code(
        place.plan.task.file, "naming its schema", simulated=place.plan.simulated
    ):
        schema = task.schema()
    shard = open_raw_shard(place.at_site(place.site.paths.data), schema)
    pinned = place.party.data
    if shard.digest != pinned:
        raise StorageError(
            f"the data of {place.site.party!r} is not what the plan pins",
            code="data-differs",
            expected=str(pinned),
            got=shard.digest,
            remedy="Restore the data, or have all parties sign a plan that pins it.",
        )
    return shard


def open_recipient_data(place: Place, task: Task) -> RawShard | None:
    """Returns the records that a recipient evaluates on; None where the plan pins none.

    What comes of them stands in a log that the host reads. The site file is the host's
    too: records of its choice, one after another, would show it the model bit by bit.

    Raises:
        ConfigError: If the site names data that the plan does not, or the other way
            round.
        StorageError: If the data is damaged, or not what the plan pins.
    """
    if place.party.data is not None:
        return open_data(place, task)
    if place.site.paths.data is not None:
        raise ConfigError(
            f"the plan pins no data of {place.site.party!r}",
            code="data-not-pinned",
            expected="no [paths] data in site.toml",
            got=place.site.paths.data,
            remedy="Remove it, or have all parties sign a plan that pins it.",
        )
    return None
