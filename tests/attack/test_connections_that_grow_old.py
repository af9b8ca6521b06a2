"""A connection takes new calls for a while; then its owner passes the gate again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import grpc
import pytest
from tests.support.federation_in_memory import START, Federation, HandClock
from tests.support.open_server import admitted_channel, open_server
from tests.support.relay import always, relay
from tests.support.running import Run, until
from tests.support.training_calls import begin_round, model_of, receive, refused

from cloister.federation import ports
from cloister.ratls.channels import training_options
from cloister.ratls.enrolling import enrol
from cloister.ratls.node import Node

LIFE = timedelta(hours=12)
Age = Callable[[float], None]


@pytest.fixture
def age(monkeypatch: pytest.MonkeyPatch) -> Age:
    def set_age(seconds: float) -> None:
        options = partial(training_options, connection_age_seconds=seconds)
        monkeypatch.setattr(ports, "training_options", options)

    return set_age


def test_an_old_channel_makes_a_new_connection_and_its_owner_shows_itself_again(
    run: Run, server: Node, alice: Node, bob: Node, tmp_path: Path, age: Age
) -> None:
    async def story() -> None:
        age(0.2)
        async with (
            open_server(server, tmp_path) as port,
            relay(always(port.training)) as between,
            admitted_channel(port, bob) as other,
        ):
            diverted = replace(port, training=between.address)
            async with admitted_channel(diverted, alice) as channel:
                await begin_round(port, channel, other)
                await between.passages[0].over.wait()
                assert await model_of(receive(port, channel))
            assert [it.resumed for it in between.passages] == [False, False]
            assert port.refusals() == []

    run(story())


def test_an_old_channel_of_a_node_that_was_replaced_meets_the_guard_again(
    run: Run, federation: Federation, tmp_path: Path, age: Age
) -> None:
    async def story() -> None:
        age(0.2)
        async with (
            open_server(federation.node("aggregator"), tmp_path) as port,
            relay(always(port.training)) as between,
            admitted_channel(port, federation.node("bob")) as other,
        ):
            diverted = replace(port, training=between.address)
            former = federation.node("alice")
            async with admitted_channel(diverted, former) as channel:
                await begin_round(port, channel, other)
                await enrol(federation.node("alice", epoch=2), port.enrolment)
                await between.passages[0].over.wait()
                assert await refused(receive(port, channel)) == "not-admitted"
            assert len(between.passages) == 2
            assert port.admitted() == [("bob", 1), ("alice", 2)]
            assert port.refusals() == ["not-admitted"]

    run(story())


def test_an_old_channel_whose_certificate_is_over_does_not_pass_the_gate(
    run: Run, federation: Federation, tmp_path: Path, age: Age
) -> None:
    """The server's own clock stands still here: it is TLS that refuses."""

    async def story() -> None:
        # TLS takes a certificate until its last second is over: at most three from its
        # making. A connection's age is kept to a tenth.
        age(3.4)
        clock = HandClock(START - LIFE)
        server = federation.node("aggregator", clock=clock)
        alice = federation.node("alice", clock=clock)
        async with (
            open_server(server, tmp_path) as port,
            relay(always(port.training)) as between,
        ):
            diverted = replace(port, training=between.address)
            lapses = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2)
            clock.now = lapses - LIFE
            async with admitted_channel(diverted, alice) as channel:
                [admitted] = port.ports.table.admitted()
                assert admitted.expires_at == lapses
                # The connection is made, and bob is waited for.
                call = receive(port, channel)
                await until(lambda: port.coordinator._attendance._joined == {"alice"})
                call.cancel()
                await between.passages[0].over.wait()
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await model_of(receive(port, channel))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert len(between.passages) >= 2
            # The guard was not even asked; it would have let her pass.
            assert port.ports.table.check(alice.identity.tls_spki) == admitted.peer
            assert port.refusals() == []
            assert port.coordinator.traffic.sent == 0
            assert port.files() == ["logs/aggregator.jsonl"]

    run(story())
