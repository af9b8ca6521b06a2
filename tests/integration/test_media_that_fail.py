"""Media that are full, read-only, in use, or hold what another version wrote.

Each ends in an error that says what to do; the state that lay there is as it was, and
training goes on from it as soon as the medium does what it should. The small media are
mounted in memory, which only root may do.
"""

from __future__ import annotations

import binascii
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.conftest import Deployment, Start, StartCustodians
from tests.support.kept_states import (
    ARRAYS,
    PAGE,
    arrays_of,
    place_at,
    read_state,
    save_next,
    write_states,
)

from cloister.errors import StorageError
from cloister.storage.mirror.state_mirror import StateMirror

NAME = "own.mirror"
VERSION_AT, CHECK_AT = 16, 24
MOUNT = "/usr/bin/mount"
UNMOUNT = "/usr/bin/umount"


class SmallMedium:
    """A file system of a few pages.

    Args:
        directory: Where it is mounted.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._run(MOUNT, "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(directory))

    def remount(self, options: str) -> None:
        """Changes what it allows, or its size."""
        self._run(MOUNT, "-o", f"remount,{options}", str(self.directory))

    def close(self) -> None:
        """Takes it away, with all that lies there."""
        self._run(UNMOUNT, str(self.directory))

    def _run(self, *command: str) -> None:
        done = subprocess.run(  # noqa: S603 - fixed programs
            command, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise PermissionError(done.stderr.strip())


@pytest.fixture
def medium(tmp_path: Path) -> Iterator[SmallMedium]:
    """Twenty-four KiB: too few for two copies of the states of these tests."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small medium")
    directory = tmp_path / "medium"
    directory.mkdir()
    try:
        mounted = SmallMedium(directory)
    except (PermissionError, FileNotFoundError) as error:
        pytest.skip(f"a small medium cannot be mounted here: {error}")
    yield mounted
    mounted.close()


def refused(act: Callable[[], object], code: str) -> StorageError:
    """Returns the error with which a state is not kept, or not opened."""
    with pytest.raises(StorageError) as caught:
        act()
    assert caught.value.code == code
    assert caught.value.remedy, "it says what to do"
    return caught.value


def test_a_full_medium_says_how_much_it_needs_and_keeps_nothing(
    medium: SmallMedium,
) -> None:
    place = place_at(medium.directory / NAME)
    error = refused(lambda: StateMirror.create(place, ARRAYS), "mirror-full")
    states = 2 * sum(spec.size_bytes for spec in ARRAYS)
    needed = int(str(error.expected).split()[0])
    assert states < needed < states + 6 * PAGE
    assert list(medium.directory.iterdir()) == []
    # As much as was asked for is enough, and no round asks for more later.
    medium.remount(f"size={needed}")
    write_states(place, 1, 2, 3)
    assert read_state(place)[0] == 3
    assert [it.name for it in medium.directory.iterdir()] == [NAME]


def test_a_medium_in_memory_says_what_it_does_not_outlive(medium: SmallMedium) -> None:
    medium.remount("size=1m")
    mirror = StateMirror.create(place_at(medium.directory / NAME), ARRAYS)
    assert mirror.survives == "process-death"
    mirror.close()


def test_a_medium_that_became_read_only_keeps_its_state(medium: SmallMedium) -> None:
    medium.remount("size=1m")
    place, other = (place_at(medium.directory / name) for name in (NAME, "new.mirror"))
    write_states(place, 1)
    before = place.path.read_bytes()
    medium.remount("ro")
    refused(lambda: StateMirror.open(place, ARRAYS), "mirror-unwritable")
    refused(lambda: StateMirror.create(other, ARRAYS), "mirror-unwritable")
    assert place.path.read_bytes() == before
    medium.remount("rw")
    assert [it.name for it in medium.directory.iterdir()] == [NAME]
    save_next(place, 2)
    completed, arrays = read_state(place)
    assert completed == 2
    assert {name: it.tobytes() for name, it in arrays.items()} == {
        name: it.tobytes() for name, it in arrays_of(2).items()
    }


def newer_page(page: bytes) -> bytes:
    """Returns a first page whose form is of a version to come."""
    return page[:VERSION_AT] + struct.pack("<I", 2) + page[VERSION_AT + 4 :]


def older_sealing(page: bytes) -> bytes:
    """Returns a first page of this form, before states of an older sealing."""
    changed = bytearray(page.replace(b"cloister/mirror/1", b"cloister/mirror/0"))
    assert changed != page
    struct.pack_into("<I", changed, CHECK_AT, 0)
    struct.pack_into("<I", changed, CHECK_AT, binascii.crc32(changed))
    return bytes(changed)


@pytest.mark.parametrize("other", [newer_page, older_sealing])
def test_a_state_of_another_version_is_refused_and_stays_readable_by_its_own(
    tmp_path: Path, other: Callable[[bytes], bytes]
) -> None:
    place = place_at(tmp_path / NAME)
    write_states(place, 1)
    own = place.path.read_bytes()
    foreign = other(own[:PAGE]) + own[PAGE:]
    place.path.write_bytes(foreign)
    refused(lambda: StateMirror.open(place, ARRAYS), "mirror-version")
    assert place.path.read_bytes() == foreign
    place.path.write_bytes(own)
    assert read_state(place)[0] == 1


@pytest.mark.long
def test_a_second_server_on_one_run_directory_waits_and_then_leaves_it_alone(
    deployment: Deployment, start: Start
) -> None:
    """It takes no warrant either: with one it would have stopped the first."""
    plan = ("--plan", str(deployment.plan), "--json")
    first = start("server", *plan)
    # Nobody's custodian runs: it has the directory, and nothing else yet.
    first.wait_for("waiting-for-custodian")
    site = deployment.site("aggregator")
    impatient = site.with_name("impatient.toml")
    own = "patience_seconds = "
    lines = (it for it in site.read_text().splitlines() if not it.startswith(own))
    impatient.write_text("\n".join([f"{own}0.5", *lines]))
    second = start("server", *plan, "--site", str(impatient))
    event = second.wait_for("waiting-for-predecessor")
    lock = Path(str(event["lock"]))
    assert lock.parent == deployment.run_directory / "state"
    assert second.wait_for("failed")["code"] == "mirror-in-use"
    assert second.finish()[0] == 4
    assert first.process.poll() is None
    first.interrupt()
    assert first.finish()[0] == 130
    assert [it.name for it in lock.parent.iterdir()] == [lock.name]


@pytest.mark.long
def test_a_server_ends_with_its_medium_and_goes_on_with_it(
    medium: SmallMedium,
    deployment: Deployment,
    start: Start,
    start_custodians: StartCustodians,
) -> None:
    """Full, then as it should be, then read-only; its workers wait for it."""
    with deployment.site("aggregator").open("a") as site:
        site.write(f'\n[mirror]\ndirectory = "{medium.directory}"\n')
    states = medium.directory / deployment.run_directory.name
    plan = ("--plan", str(deployment.plan), "--json")
    start_custodians(deployment)
    full = start("server", *plan)
    assert full.wait_for("failed")["code"] == "mirror-full"
    assert full.finish()[0] == 4
    assert [it.suffix for it in states.iterdir()] == [".lock"]

    medium.remount("size=64m")
    running = start("server", *plan)
    workers = [start("worker", "--party", it, *plan) for it in ("alice", "bob")]
    running.wait_for("mirror-volatile")
    running.wait_for("round")
    running.interrupt()
    assert running.finish()[0] == 130
    [mirror] = states.glob("*.mirror")
    kept = mirror.read_bytes()

    medium.remount("ro")
    locked = start("server", *plan)
    assert locked.wait_for("failed")["code"] == "mirror-unwritable"
    assert locked.finish()[0] == 4
    medium.remount("rw")
    assert mirror.read_bytes() == kept

    again = start("server", *plan)
    resumed = again.wait_for("state-resumed")
    assert resumed["survives"] == "process-death"
    assert int(str(resumed["round"])) > 0
    for process in (again, *workers):
        assert process.finish()[0] == 0
    assert deployment.sealed_model.exists()
