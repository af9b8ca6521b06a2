from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.mirroring_process import STATE_BYTES, VALUES

from cloister.storage.mirror.medium import open_region
from cloister.storage.mirror.region import Region
from cloister.storage.mirror.slots import SlotRing
from cloister.storage.mirror.twin import TwinRegion

ROOT = Path(__file__).parents[4]


def make(path: Path, kind: str) -> None:
    if kind == "ring":
        size = SlotRing.region_bytes(slots=2, slot_bytes=STATE_BYTES)
        region = open_region(path, size=size, new=True, medium="file")
        SlotRing.format(region, slots=2, slot_bytes=STATE_BYTES, header=b"")
    else:
        size = TwinRegion.region_bytes(capacity=STATE_BYTES)
        region = open_region(path, size=size, new=True, medium="file")
        TwinRegion.format(region, capacity=STATE_BYTES, header=b"")
    region.publish()
    region.close()


def run_until_killed(path: Path, kind: str, *, states: int) -> int:
    """Returns the last state that a process said was durable before it was killed."""
    with subprocess.Popen(  # noqa: S603 - ourselves
        [sys.executable, "-m", "tests.support.mirroring_process", str(path), kind],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(states)]
        process.send_signal(signal.SIGKILL)
        told += [line for line in process.stdout if line.endswith(b"\n")]
    return int(told[-1])


def found(region: Region, kind: str) -> bytes:
    view = bytearray(STATE_BYTES)
    if kind == "ring":
        ring = SlotRing.open(region)
        assert ring.current is not None
        ring.read_into(ring.current, 0, memoryview(view))
    else:
        TwinRegion.open(region).read_into(0, memoryview(view))
    return bytes(view)


@pytest.mark.parametrize("kind", ["ring", "twin"])
def test_a_killed_process_leaves_its_last_state_or_the_one_on_its_way(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "x.mirror"
    make(path, kind)
    last = run_until_killed(path, kind, states=3)
    region = open_region(path, size=1, new=False, medium="file")
    state = found(region, kind)
    region.close()
    assert len(set(state)) == 1
    assert state[0] in {last % VALUES, (last + 1) % VALUES}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["ring", "twin"])
def test_many_killed_processes_leave_whole_states(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.mirror"
    make(path, kind)
    for states in range(1, 11):
        last = run_until_killed(path, kind, states=states)
        region = open_region(path, size=1, new=False, medium="file")
        state = found(region, kind)
        region.close()
        assert len(set(state)) == 1
        assert state[0] in {last % VALUES, (last + 1) % VALUES}
