from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation.platforms.installed_files import (
    encode_entries,
    hash_files,
    length_prefixed,
    list_entries,
)
from cloister.errors import PlatformError


def listed(root: Path) -> list[tuple[str, str, bool]]:
    """Path, link text, and whether content is recorded."""
    return [
        (os.fsdecode(entry.path), os.fsdecode(entry.link), bool(entry.file))
        for entry in list_entries(root)
    ]


def encoding(root: Path) -> bytes:
    entries = list_entries(root)
    return encode_entries(
        entries, hash_files([entry.file for entry in entries if entry.file])
    )


def write(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_files_come_in_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b.py", "a/z.py", "a.py", "a/.hidden", "a-b/c.so"):
        write(tmp_path / name)
    paths = [path for path, _, _ in listed(tmp_path)]
    assert paths == ["a-b/c.so", "a.py", "a/.hidden", "a/z.py", "b.py"]


def test_a_missing_root_has_no_entries_and_a_file_is_its_own(tmp_path: Path) -> None:
    assert listed(tmp_path / "python311.zip") == []
    assert listed(write(tmp_path / "python312.zip")) == [("", "", True)]


def test_only_cached_bytecode_is_left_out(tmp_path: Path) -> None:
    for name in (
        "__pycache__/a.cpython-311.pyc",
        "__pycache__/a.cpython-311.pyc.140234",
        "deep/__pycache__/b.pyc",
        "__pycache__/evil.py",
        "sourceless.pyc",
        "my__pycache__/c.pyc",
        "__pycache__/inner/d.pyc",
    ):
        write(tmp_path / name)
    assert [path for path, _, _ in listed(tmp_path)] == [
        "__pycache__/evil.py",
        "__pycache__/inner/d.pyc",
        "my__pycache__/c.pyc",
        "sourceless.pyc",
    ]


def test_directories_left_out_are_those_directly_below_only(tmp_path: Path) -> None:
    write(tmp_path / "site-packages" / "a.py")
    write(tmp_path / "lib" / "site-packages" / "b.py")
    entries = list_entries(tmp_path, leave_out=frozenset({"site-packages"}))
    assert [entry.path for entry in entries] == [b"lib/site-packages/b.py"]


def test_a_link_is_recorded_with_its_text_and_content(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside" / "real.so")
    root = tmp_path / "root"
    root.mkdir()
    (root / "file.so").symlink_to("../outside/real.so")
    (root / "directory").symlink_to(outside.parent)
    (root / "nowhere").symlink_to("missing")
    assert listed(root) == [
        ("directory", str(outside.parent), False),
        ("directory/real.so", "", True),
        ("file.so", "../outside/real.so", True),
        ("nowhere", "missing", False),
    ]


def test_content_behind_a_link_counts(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside" / "real.so")
    root = tmp_path / "root"
    root.mkdir()
    (root / "directory").symlink_to(outside.parent)
    before = encoding(root)
    outside.write_bytes(b"y")
    assert encoding(root) != before


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    write(tmp_path / "a" / "b" / "c.py")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "self").symlink_to("self")
    (tmp_path / "root").symlink_to(".")
    assert listed(tmp_path) == [
        ("a/b/c.py", "", True),
        ("a/b/up", str(tmp_path / "a"), False),
        ("a/self", "self", False),
        ("root", ".", False),
    ]


def test_which_directory_a_link_leads_to_counts(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("one", "two"):
        write(root / name / "a.py", name.encode())
    # The text of the link in the root stays the same; what it leads to changes.
    (tmp_path / "alias").symlink_to(root / "one")
    (root / "zlink").symlink_to(tmp_path / "alias")
    before = encoding(root)
    (tmp_path / "alias").unlink()
    (tmp_path / "alias").symlink_to(root / "two")
    assert encoding(root) != before


def test_a_root_reached_by_a_link_is_the_root_itself(tmp_path: Path) -> None:
    write(tmp_path / "real" / "a.py")
    (tmp_path / "link").symlink_to("real")
    assert encoding(tmp_path / "link") == encoding(tmp_path / "real")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PlatformError) as refusal:
        list_entries(tmp_path)
    assert refusal.value.code == "measurement-unreadable"


def test_a_file_that_goes_away_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.py")
    entries = list_entries(tmp_path)
    file.unlink()
    with pytest.raises(PlatformError) as refusal:
        hash_files([entry.file for entry in entries])
    assert refusal.value.code == "measurement-unreadable"


def test_a_directory_that_cannot_be_listed_is_refused(tmp_path: Path) -> None:
    # A path longer than the kernel takes cannot be listed, whoever asks.
    with pytest.raises(PlatformError):
        list_entries(tmp_path / ("x" * 300))


@given(
    first=st.lists(st.binary(max_size=12), max_size=4),
    second=st.lists(st.binary(max_size=12), max_size=4),
)
@settings(deadline=None, derandomize=True)
def test_different_parts_never_join_to_the_same_bytes(
    first: list[bytes], second: list[bytes]
) -> None:
    assert (length_prefixed(*first) == length_prefixed(*second)) == (first == second)
