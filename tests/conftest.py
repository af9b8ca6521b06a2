"""What every test stands on: a node's environment, one event loop, one federation."""

from __future__ import annotations

import os

# Read by gRPC when it is first imported, so before anything else. The same as
# `cloister.ratls.channels.TLS13_ONLY`, which a test holds equal.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES128-GCM-SHA256"
os.environ["GRPC_VERBOSITY"] = "NONE"

import asyncio
from collections.abc import Coroutine, Iterator

import pytest
from hypothesis import settings
from tests.support.federation_in_memory import Federation, HandClock, make_federation
from tests.support.meeting import Meeting
from tests.support.reachable import set_aside
from tests.support.running import Result, Run

from cloister.federation import staging
from cloister.ratls.node import Node

# The same examples every time, however slow the machine.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# A story that hangs ends here; none takes a second.
STORY_SECONDS = 30.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fail-on-skip",
        action="store_true",
        help="fail when any test was skipped",
    )


def pytest_collection_finish() -> None:
    set_aside()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped and config.getoption("--fail-on-skip"):
        terminalreporter.section("skipped tests are failures here (--fail-on-skip)")
        for report in skipped:
            terminalreporter.line(f"SKIPPED {report.nodeid}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not session.config.getoption("--fail-on-skip"):
        return
    if reporter.stats.get("skipped") and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session", autouse=True)
def no_last_words() -> Iterator[None]:
    """Senders here answer at once or never: who lost its place is not waited for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staging, "LAST_CHUNK_SECONDS", 0.2)
        yield


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    # One loop for all: gRPC's poller belongs to the process, not to a loop.
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def run(runner: asyncio.Runner) -> Run:
    def run_story(story: Coroutine[object, object, Result]) -> Result:
        return runner.run(asyncio.wait_for(story, STORY_SECONDS))

    return run_story


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return make_federation(tmp_path_factory.mktemp("federation"))


@pytest.fixture(scope="session")
def other_federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """The same plan in all but its development root and its keys."""
    return make_federation(tmp_path_factory.mktemp("other-federation"))


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def server(federation: Federation, clock: HandClock) -> Node:
    return federation.node("aggregator", clock=clock)


@pytest.fixture
def alice(federation: Federation, clock: HandClock) -> Node:
    return federation.node("alice", clock=clock)


@pytest.fixture
def bob(federation: Federation, clock: HandClock) -> Node:
    return federation.node("bob", clock=clock)


@pytest.fixture
def meeting(server: Node, alice: Node) -> Meeting:
    return Meeting(server, alice)
