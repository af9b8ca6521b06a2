"""How a log ends, whatever the file is."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.log_lines import record

from cloister.cli.log_end import LogEnd, read_end
from cloister.errors import StorageError
from cloister.storage.dsse import MAX_LINE_BYTES

STATE = 64 * "a"


@pytest.mark.parametrize(
    ("log", "end"),
    [
        (record("round", state=None), LogEnd(kind="round")),
        (
            record("round") + record("run-failed", state=STATE, code="x"),
            LogEnd(kind="run-failed", state=STATE),
        ),
        # What was broken off in the middle of its line was told nobody.
        (
            record("round") + record("run-failed", state=STATE)[:-1],
            LogEnd(kind="round"),
        ),
        (record("round", state=7), LogEnd()),
        (b"", LogEnd()),
        (b"no log\n", LogEnd()),
        (2 * MAX_LINE_BYTES * b"x" + b"\n", LogEnd()),
    ],
    ids=range(7),
)
def test_a_log_ends_with_its_last_whole_record(
    tmp_path: Path, log: bytes, end: LogEnd
) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(log)
    assert read_end(path) == end


def test_a_log_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        read_end(tmp_path)
    assert caught.value.code == "audit-unreadable"
