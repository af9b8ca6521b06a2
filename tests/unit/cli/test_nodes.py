"""A node's line to its custodian, over a real port."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support.custodians import Custodians
from tests.support.custody_keys import make_keyed
from tests.support.federation_in_memory import Federation, HandClock
from tests.support.places import place_of
from tests.support.recorded_log import RecordedLog
from tests.support.running import Run

from cloister.cli.nodes import gather, open_line, share_addresses
from cloister.errors import ConfigError
from cloister.ratls.warrant import HeldWarrant


@pytest.mark.parametrize(("minutes", "warnings"), [(0, 0), (9, 0), (11, 1), (19, 1)])
def test_a_host_whose_clock_is_behind_is_told_so(
    federation: Federation, tmp_path: Path, run: Run, minutes: int, warnings: int
) -> None:
    custodians = Custodians(
        federation=federation, directory=tmp_path, plan=federation.plan
    )
    host = HandClock()
    host.forward(-timedelta(minutes=minutes))
    log = RecordedLog()
    node = replace(federation.node("alice", clock=host), warrant=HeldWarrant())

    async def meet() -> None:
        async with custodians.office("alice") as office:
            place = place_of(federation.plan, tmp_path, custodian=str(office.address))
            line = await open_line(node, place, log=log.logger())
            await line.close()

    run(meet())
    assert node.warrant.current.terms.epoch == 1
    told = log.named("clock-behind")
    assert [it["seconds"] for it in told] == [minutes * 60] * warnings


PORT = "127.0.0.1:7003"


@pytest.mark.parametrize(
    ("party", "named", "code"),
    [
        ("alice", ("aggregator",), None),
        ("aggregator", ("alice",), None),
        ("bob", ("aggregator", "alice"), None),
        ("rita", (), None),
        ("alice", (), "share-address-missing"),
        ("bob", ("alice",), "share-address-missing"),
        ("alice", ("aggregator", "bob"), "share-address-unused"),
        ("alice", ("aggregator", "alice"), "share-address-unused"),
        ("rita", ("aggregator",), "share-address-unused"),
    ],
)
def test_a_site_names_the_other_custodians_with_a_share_and_nobody_else(
    tmp_path: Path, party: str, named: tuple[str, ...], code: str | None
) -> None:
    plan = make_keyed(tmp_path).plan
    place = place_of(plan, tmp_path, party=party, shares=dict.fromkeys(named, PORT))
    if code is None:
        assert set(share_addresses(place)) == set(named)
        return
    with pytest.raises(ConfigError) as caught:
        share_addresses(place)
    assert caught.value.code == code


def test_a_node_gathers_its_keys_from_the_custodians_that_its_site_names(
    tmp_path: Path, run: Run
) -> None:
    keyed = make_keyed(tmp_path / "keyed")
    custodians = Custodians(
        federation=keyed.federation,
        directory=tmp_path / "registers",
        plan=keyed.plan,
        keys=keyed.stores,
    )
    node = replace(keyed.federation.node("alice"), warrant=HeldWarrant())
    log = RecordedLog()

    async def story() -> None:
        async with (
            custodians.office("alice") as own,
            custodians.office("aggregator") as other,
        ):
            place = place_of(
                keyed.plan,
                tmp_path,
                custodian=str(own.address),
                shares={"aggregator": str(other.address)},
            )
            line = await open_line(node, place, log=log.logger())
            keys = await gather(node, line, place, log=log.logger())
            await line.close()
            assert keys.key("data") == keyed.secrets["alice", "data"]
            assert keys.state is not None

    run(story())
    assert len(log.named("keys-received")) == 1
