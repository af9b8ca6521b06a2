"""What stories about states begin with."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.federation_in_memory import Federation
from tests.support.stopped_run import StoppedRun, stop_in_the_middle


@pytest.fixture(scope="session")
def stopped(
    runner: asyncio.Runner,
    federation: Federation,
    tmp_path_factory: pytest.TempPathFactory,
) -> StoppedRun:
    """A run that was stopped in its middle; stories copy it."""
    root = tmp_path_factory.mktemp("stopped")
    return runner.run(asyncio.wait_for(stop_in_the_middle(root, federation), 30))
