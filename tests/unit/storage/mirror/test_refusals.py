from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.mirrors import PART_SPECS, SPECS, place_at, save

from cloister.errors import StorageError
from cloister.storage.mirror.parts_mirror import PartsMirror
from cloister.storage.mirror.region import PAGE
from cloister.storage.mirror.state_mirror import StateMirror
from cloister.storage.mirror.subject import MirrorPlace


def changed_at(offset: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[offset] += 1
        path.write_bytes(content)

    return change


def cut_to(size: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, size)


def another_file(path: Path) -> None:
    path.write_bytes(b"x" * 2 * PAGE)


# Wherever in this program it is found out.
SPOILED = pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (changed_at(16), "mirror-version"),
        (changed_at(70), "mirror-damaged"),
        (changed_at(PAGE), "mirror-damaged"),
        (changed_at(3 * PAGE), "mirror-damaged"),
        (cut_to(0), "mirror-damaged"),
        (cut_to(2 * PAGE), "mirror-damaged"),
        (cut_to(2 * PAGE + 1), "mirror-damaged"),
        (another_file, "mirror-foreign"),
    ],
    ids=["version", "header", "word", "manifest", "empty", "short", "odd", "other"],
)


@pytest.fixture
def place(tmp_path: Path) -> MirrorPlace:
    return place_at(tmp_path / "state.mirror")


def refused(open_it: Callable[[], object]) -> StorageError:
    with pytest.raises(StorageError) as caught:
        open_it()
    assert not isinstance(caught.value.__context__, StorageError)
    return caught.value


@SPOILED
def test_a_state_that_does_not_open_is_put_back_or_the_run_begins_anew(
    place: MirrorPlace, spoil: Callable[[Path], None], code: str
) -> None:
    mirror = StateMirror.create(place, SPECS)
    save(mirror, 1)
    mirror.close()
    spoil(place.path)
    error = refused(lambda: StateMirror.open(place, SPECS))
    assert error.code == code
    assert str(place.path) in str(error)
    assert error.remedy.endswith("or begin the run anew with --fresh.")


@SPOILED
def test_a_journal_that_does_not_open_can_be_moved_away(
    place: MirrorPlace, spoil: Callable[[Path], None], code: str
) -> None:
    PartsMirror.create(place, PART_SPECS).close()
    spoil(place.path)
    error = refused(lambda: PartsMirror.open(place, PART_SPECS))
    assert error.code == code
    assert f"move {place.path} away" in error.remedy
    assert "--fresh" not in error.remedy
    place.path.rename(place.path.with_name("away"))
    PartsMirror.create(place, PART_SPECS).close()


def test_a_journal_that_is_in_use_is_not_to_be_moved_away(place: MirrorPlace) -> None:
    mirror = PartsMirror.create(place, PART_SPECS)
    error = refused(lambda: PartsMirror.open(place, PART_SPECS))
    assert (error.code, error.remedy) == ("mirror-in-use", "Stop the other one first.")
    mirror.close()
