"""Where a node keeps its state, under which key, and that it alone does.

The order matters: a node takes its party's place on this machine before it asks for a
warrant. With the warrant it takes its predecessor's place everywhere, and that one may
still be writing the very state that this one goes on from.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from cloister.cli.earlier_starts import check_begins, set_aside
from cloister.cli.host_time import utc_now
from cloister.cli.places import Place
from cloister.custody.node_keys import NodeKeys
from cloister.errors import PlatformError, StorageError
from cloister.plan.digest import digest_bytes
from cloister.plan.plan import PlanHash, plan_hash
from cloister.storage.keys import Secret
from cloister.storage.mirror.subject import MirrorPlace, Subject
from cloister.storage.mirror.writer_lock import hold

# A node that was told to stop finishes a save first. One that hangs is to be known.
_PREDECESSOR_SECONDS = 20.0
_LOOK_SECONDS = 0.1


@asynccontextmanager
async def sole_node(place: Place, *, log: FilteringBoundLogger) -> AsyncIterator[None]:
    """Lends the place of the party's node in this run, on this machine.

    Waits for a predecessor that is about to end, at most as long as the site says.

    Raises:
        StorageError: If another node holds it all that time (``mirror-in-use``).
        PlatformError: If there is no directory for it.
    """
    _make_directory(place.state_directory)
    clock = asyncio.get_running_loop().time
    until = clock() + min(place.site.patience_seconds, _PREDECESSOR_SECONDS)
    told = False
    with ExitStack() as held:
        while True:
            try:
                # Without patience, or a stop would have to wait for it in a thread.
                held.enter_context(hold(place.lock_path, patience_seconds=0))
                break
            except StorageError as error:
                if error.code != "mirror-in-use" or clock() >= until:
                    raise
            if not told:
                log.info("waiting-for-predecessor", lock=str(place.lock_path))
                told = True
            await asyncio.sleep(_LOOK_SECONDS)
        yield


def begin_anew(place: Place, *, log: FilteringBoundLogger) -> None:
    """Sets aside what earlier starts of this node left; the caller is the sole node.

    Raises:
        ConfigError: If the plan takes over another one's run.
        StorageError: If something cannot be moved.
    """
    check_begins(place.plan)
    for moved in set_aside(place, at=utc_now()):
        log.warning("set-aside", path=str(moved))


def server_mirror(place: Place, keys: NodeKeys) -> MirrorPlace:
    """Returns where a server keeps its state.

    Raises:
        ConfigError: If the plan gives the node no key for it.
        PlatformError: If its platform gives it none.
    """
    return _mirror(place, keys.state_key(), under=plan_hash(place.plan))


def former_mirror(place: Place, keys: NodeKeys) -> MirrorPlace | None:
    """Returns where it kept it under the plan before; None if this amends none."""
    before, path = place.plan.predecessor, place.former_mirror_path
    if before is None or path is None:
        return None
    under = PlanHash(digest_bytes(before.plan))
    return _mirror(place, keys.state_key_before(), under=under, path=path)


def worker_mirror(place: Place, keys: NodeKeys) -> MirrorPlace | None:
    """Returns where a worker keeps its state; None where nothing gives it a key."""
    key = keys.find_state_key()
    return None if key is None else _mirror(place, key, under=plan_hash(place.plan))


def _mirror(
    place: Place, key: Secret, *, under: PlanHash, path: Path | None = None
) -> MirrorPlace:
    return MirrorPlace(
        path=path or place.mirror_path,
        key=key,
        subject=Subject(
            run_id=place.plan.run_id,
            plan_hash=under,
            role=place.party.role,
            party=place.party.name,
        ),
        medium=place.site.mirror.medium,
    )


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise PlatformError(
            f"cannot make the directory {directory} for the node's state",
            code="state-directory",
            expected="a directory that this user can write to",
            got=error.strerror or "an error",
            remedy="Correct [mirror] directory, or [paths] runs, in site.toml.",
        ) from error
