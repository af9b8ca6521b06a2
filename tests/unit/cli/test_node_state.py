"""Where a node keeps its state, under which key, and that it alone does."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.support.federation_in_memory import Federation
from tests.support.places import place_of
from tests.support.recorded_log import RecordedLog
from tests.support.running import Run, until

from cloister.cli.node_state import (
    begin_anew,
    former_mirror,
    server_mirror,
    sole_node,
    worker_mirror,
)
from cloister.cli.places import Place
from cloister.custody.node_keys import NodeKeys
from cloister.errors import ConfigError, PlatformError, StorageError
from cloister.plan.digest import format_digest
from cloister.plan.plan import Plan, Predecessor, plan_hash
from cloister.plan.site import MirrorSection
from cloister.storage.keys import Secret

KEY, KEY_BEFORE = Secret(32 * b"\x01"), Secret(32 * b"\x02")


def with_site(place: Place, **changes: object) -> Place:
    return replace(place, site=msgspec.structs.replace(place.site, **changes))


def amended(plan: Plan) -> Plan:
    digest = format_digest(32 * b"\x07")
    named = Predecessor(plan=digest, state=digest, round=3)
    return msgspec.structs.replace(plan, predecessor=named)


def keys_of(
    federation: Federation, party: str, *, state: Secret | None = KEY
) -> NodeKeys:
    return NodeKeys(
        node=federation.node(party),
        released={},
        state=state,
        state_before=KEY_BEFORE,
        platform=None,
    )


def test_a_servers_state_lies_in_its_run_under_its_plan(
    federation: Federation, tmp_path: Path
) -> None:
    place = place_of(federation.plan, tmp_path, party="aggregator")
    mirror = server_mirror(place, keys_of(federation, "aggregator"))
    digest = plan_hash(federation.plan)
    assert mirror.path == (
        place.run_directory / "state" / f"aggregator.{digest.hex()[:16]}.mirror"
    )
    assert (mirror.key, mirror.medium) == (KEY, "file")
    subject = mirror.subject
    assert (subject.run_id, subject.plan_hash) == (federation.plan.run_id, digest)
    assert (subject.role, subject.party) == ("server", "aggregator")
    assert former_mirror(place, keys_of(federation, "aggregator")) is None


def test_under_an_amended_plan_it_goes_on_from_where_the_plan_before_kept_it(
    federation: Federation, tmp_path: Path
) -> None:
    place = place_of(amended(federation.plan), tmp_path, party="aggregator")
    former = former_mirror(place, keys_of(federation, "aggregator"))
    assert former is not None
    assert former.path == place.state_directory / f"aggregator.{8 * '07'}.mirror"
    assert former.path != place.mirror_path
    assert former.key == KEY_BEFORE
    assert former.subject.plan_hash == 32 * b"\x07"


def test_a_site_may_keep_states_elsewhere_in_a_directory_for_each_run(
    federation: Federation, tmp_path: Path
) -> None:
    place = with_site(
        place_of(federation.plan, tmp_path, party="aggregator"),
        mirror=MirrorSection(directory="pmem", medium="persistent-memory"),
    )
    header = federation.plan.plan
    directory = tmp_path / "pmem" / f"{header.name}.{header.run}"
    mirror = server_mirror(place, keys_of(federation, "aggregator"))
    assert (mirror.path.parent, mirror.medium) == (directory, "persistent-memory")
    assert place.lock_path.parent == directory


def test_a_worker_without_a_key_keeps_nothing_and_a_server_is_refused(
    federation: Federation, tmp_path: Path
) -> None:
    alice = place_of(federation.plan, tmp_path, party="alice")
    assert worker_mirror(alice, keys_of(federation, "alice", state=None)) is None
    mirror = worker_mirror(alice, keys_of(federation, "alice"))
    assert mirror is not None
    assert (mirror.subject.role, mirror.subject.party) == ("worker", "alice")
    server = place_of(federation.plan, tmp_path, party="aggregator")
    with pytest.raises(ConfigError) as caught:
        server_mirror(server, keys_of(federation, "aggregator", state=None))
    assert caught.value.code == "state-key-missing"


def test_one_node_of_a_party_at_a_time(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    place = with_site(
        place_of(federation.plan, tmp_path, party="alice"), patience_seconds=1e-9
    )
    other = place_of(federation.plan, tmp_path, party="bob")
    log = RecordedLog()

    async def story() -> None:
        async with sole_node(place, log=log.logger()):
            async with sole_node(other, log=log.logger()):
                pass
            with pytest.raises(StorageError) as caught:
                async with sole_node(place, log=log.logger()):
                    pass
            assert caught.value.code == "mirror-in-use"
        async with sole_node(place, log=log.logger()):
            pass

    run(story())
    assert place.state_directory.stat().st_mode & 0o777 == 0o700


def test_a_node_waits_for_the_one_before_it_to_end(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    place = place_of(federation.plan, tmp_path, party="alice")
    log = RecordedLog()

    async def next_one() -> None:
        async with sole_node(place, log=log.logger()):
            pass

    async def story() -> None:
        async with sole_node(place, log=log.logger()):
            waiting = asyncio.create_task(next_one())
            await until(lambda: log.named("waiting-for-predecessor") != [])
            assert not waiting.done()
        await waiting

    run(story())
    assert len(log.named("waiting-for-predecessor")) == 1


def test_a_node_that_waits_can_be_stopped(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    place = place_of(federation.plan, tmp_path, party="alice")
    log = RecordedLog()

    async def next_one() -> None:
        async with sole_node(place, log=log.logger()):
            pytest.fail("there are two")

    async def story() -> None:
        async with sole_node(place, log=log.logger()):
            waiting = asyncio.create_task(next_one())
            await until(lambda: log.named("waiting-for-predecessor") != [])
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    run(story())


def test_a_place_that_cannot_be_made_is_named(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    place = place_of(federation.plan, tmp_path, party="alice")
    place.run_directory.parent.mkdir()
    place.run_directory.write_text("a file")

    async def story() -> None:
        async with sole_node(place, log=RecordedLog().logger()):
            pass

    with pytest.raises(PlatformError) as caught:
        run(story())
    assert caught.value.code == "state-directory"


def test_beginning_anew_is_told_file_by_file(
    federation: Federation, tmp_path: Path
) -> None:
    place = place_of(federation.plan, tmp_path, party="aggregator")
    place.state_directory.mkdir(parents=True)
    place.mirror_path.write_text("state")
    log = RecordedLog()
    begin_anew(place, log=log.logger())
    [told] = log.named("set-aside")
    assert str(told["path"]).endswith(place.mirror_path.name)
    assert not place.mirror_path.exists()
    with pytest.raises(ConfigError):
        begin_anew(replace(place, plan=amended(place.plan)), log=log.logger())
