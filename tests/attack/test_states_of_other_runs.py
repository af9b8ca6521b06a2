"""A host brings a node the state of another run, plan, role, party or task, or none.

Each was sealed properly by an accepted node, and lies where the node's own should be. A
node that took one would go on from parameters that nobody agreed on. All are refused by
name before anything of them is believed, and the file stays as it is.
"""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.support.kept_states import (
    ARRAYS,
    PAGE,
    SUBJECT,
    arrays_of,
    place_at,
    read_state,
    write_states,
)

from cloister.errors import StorageError
from cloister.storage.keys import Secret
from cloister.storage.mirror.state_mirror import StateMirror
from cloister.storage.mirror.subject import ArraySpec, MirrorPlace, Subject

OTHER_KEY = Secret(bytes(range(32, 64)))
SUBJECTS = {
    "run": replace(SUBJECT, run_id="softmax/b"),
    "plan": replace(SUBJECT, plan_hash=bytes(31) + b"\1"),
    "role": replace(SUBJECT, role="worker"),
    "party": replace(SUBJECT, party="alice"),
}


def refused(place: MirrorPlace, arrays: tuple[ArraySpec, ...] = ARRAYS) -> StorageError:
    """Returns why a node does not open what lies at its place, and leaves it alone."""
    before = place.path.read_bytes()
    with pytest.raises(StorageError) as caught:
        StateMirror.open(place, arrays)
    assert place.path.read_bytes() == before
    assert caught.value.remedy, "it says what to do"
    return caught.value


@pytest.mark.parametrize("what", SUBJECTS)
def test_a_state_of_another_is_refused_though_the_key_is_the_same(
    tmp_path: Path, what: str
) -> None:
    """Keys differ by run, plan, role and party; this does not rest on that alone."""
    own = place_at(tmp_path / "own.mirror")
    write_states(replace(own, subject=SUBJECTS[what]), 3)
    assert refused(own).code == "mirror-foreign"


@pytest.mark.parametrize("what", [*SUBJECTS, "nothing"])
def test_a_state_under_another_key_is_refused(tmp_path: Path, what: str) -> None:
    """As it is: every run, plan, role and party has a key of its own."""
    subject: Subject = SUBJECTS.get(what, SUBJECT)
    own = place_at(tmp_path / "own.mirror")
    write_states(replace(own, subject=subject, key=OTHER_KEY), 3)
    assert refused(own).code in {"mirror-key", "mirror-foreign"}


OTHER_ARRAYS = {
    "shape": (replace(ARRAYS[0], shape=(2, 500)), *ARRAYS[1:]),
    "type": (replace(ARRAYS[0], dtype="<i4"), *ARRAYS[1:]),
    "name": (replace(ARRAYS[0], name="other"), *ARRAYS[1:]),
    "order": ARRAYS[::-1],
    "number": ARRAYS[:-1],
}


@pytest.mark.parametrize("what", OTHER_ARRAYS)
def test_a_state_of_another_task_is_refused(tmp_path: Path, what: str) -> None:
    """Its bytes might well fit: two arrays may exchange names, or a shape may turn."""
    own = place_at(tmp_path / "own.mirror")
    write_states(own, 3)
    assert refused(own, OTHER_ARRAYS[what]).code == "mirror-foreign"


def test_a_part_of_another_runs_file_is_refused_wherever_it_is_put(
    tmp_path: Path,
) -> None:
    """The host cuts two files at every page, and puts them together both ways."""
    own, other = (place_at(tmp_path / f"{name}.mirror") for name in ("own", "other"))
    expected = arrays_of(3)
    write_states(own, 3)
    write_states(replace(other, subject=SUBJECTS["run"], key=OTHER_KEY), 3)
    mine, foreign = own.path.read_bytes(), other.path.read_bytes()
    assert len(mine) == len(foreign)
    refusals = 0
    for at in range(0, len(mine), PAGE):
        for mixed in (
            mine[:at] + foreign[at:],
            foreign[:at] + mine[at:],
            mine[:at] + foreign[at : at + PAGE] + mine[at + PAGE :],
        ):
            own.path.write_bytes(mixed)
            try:
                completed, found = read_state(own)
            except StorageError:
                refusals += 1
                continue
            # What was exchanged is used by nobody: the slot that is written next.
            assert completed == 3
            assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert refusals > len(mine) // PAGE


def test_what_is_no_ordinary_file_is_refused_at_once(tmp_path: Path) -> None:
    """Nobody writes to the pipe; a node that opened it might wait for ever."""
    place = place_at(tmp_path / "own.mirror")
    place.path.mkdir()
    assert found_there(place) == "mirror-unwritable"
    place.path.rmdir()
    os.mkfifo(place.path)
    assert found_there(place) == "mirror-unwritable"
    place.path.unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place.path))
        assert found_there(place) == "mirror-unwritable"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """Where it leads, another file might be made or written over."""
    place, own = (place_at(tmp_path / f"{it}.mirror") for it in ("link", "own"))
    write_states(own, 3)
    content, nowhere = own.path.read_bytes(), tmp_path / "nowhere"
    for target in (own.path, nowhere, Path("/dev/zero")):
        place.path.symlink_to(target)
        assert found_there(place) == "mirror-unwritable"
        with pytest.raises(StorageError):
            write_states(place, 1)
        place.path.unlink()
    assert own.path.read_bytes() == content
    assert not nowhere.exists()


@pytest.mark.parametrize(
    "content", [b"", b"no state", bytes(PAGE), b"\xff" * 2 * PAGE, bytes(20 * PAGE)]
)
def test_any_other_file_is_refused_and_left_alone(
    tmp_path: Path, content: bytes
) -> None:
    place = place_at(tmp_path / "own.mirror")
    place.path.write_bytes(content)
    assert found_there(place) in {"mirror-foreign", "mirror-damaged"}
    assert place.path.read_bytes() == content
    # Nor is it taken for no state at all, in whose place a new one may be made.
    with pytest.raises(StorageError) as caught:
        write_states(place, 1)
    assert caught.value.code == "mirror-exists"
    assert [it.name for it in tmp_path.iterdir()] == [place.path.name]


def found_there(place: MirrorPlace) -> str:
    """Returns why a node does not use what lies at its place."""
    with pytest.raises(StorageError) as caught:
        StateMirror.open(place, ARRAYS)
    assert caught.value.remedy, "it says what to do"
    return caught.value.code
