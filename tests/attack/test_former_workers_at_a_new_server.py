"""A host starts the server anew, and brings it a worker that was replaced long ago.

The former node's warrant is still in force. A server that had forgotten the newer one
would admit it, and leave a log that no auditor accepts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.support.federation_in_memory import Federation
from tests.support.run_audit import AUDIT_FILE, entries_of
from tests.support.running import Run, until
from tests.support.whole_run import Scene, make_scene, task

from cloister.errors import RefusedByPeer
from cloister.federation.audit_records import NodeAdmitted, NodeRefused
from cloister.federation.audit_verification import verify_audit
from cloister.federation.auditing.report import Anchors
from cloister.ratls.enrolling import enrol
from cloister.storage.audit_chain import parse_links


@asynccontextmanager
async def serving(scene: Scene) -> AsyncIterator[None]:
    """Has a fresh server listen; it is stopped before its first round."""
    begun = len(_introductions(scene))
    server = asyncio.ensure_future(scene.serve(scene.node("aggregator"), task()))
    try:
        await until(lambda: len(_introductions(scene)) > begun or server.done())
        yield
    finally:
        server.cancel()
        await asyncio.gather(server, return_exceptions=True)


def _introductions(scene: Scene) -> list[object]:
    log = scene.directory / "logs" / "aggregator.jsonl"
    return list(scene.events("aggregator", "listening")) if log.exists() else []


def test_a_former_worker_is_refused_by_a_server_that_starts_anew(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    scene = make_scene(tmp_path / "run", federation)

    async def story() -> None:
        former, newer = scene.node("alice"), scene.node("alice")
        async with scene.custodians.office("alice") as office:
            async with serving(scene):
                async with office.line(former):
                    await enrol(former, scene.enrolment)
                async with office.line(newer):
                    await enrol(newer, scene.enrolment)
            async with serving(scene):
                with pytest.raises(RefusedByPeer) as caught:
                    await enrol(former, scene.enrolment)
                # It hears no more than a stranger: its party has another node.
                assert caught.value.code == "epoch-old"
                await enrol(newer, scene.enrolment)

    run(story())
    entries = entries_of(scene.directory)
    admitted = [it for it in entries if isinstance(it, NodeAdmitted)]
    assert [it.verdict["epoch"] for it in admitted] == [1, 2, 2]
    [refused] = [it for it in entries if isinstance(it, NodeRefused)]
    assert (refused.party, refused.code) == ("alice", "epoch-old")
    with (scene.directory / AUDIT_FILE).open("rb") as log:
        verify_audit(parse_links(log), anchors=Anchors(), heads=())
