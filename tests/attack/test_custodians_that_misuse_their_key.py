"""A custodian with the party's own key that gives other warrants than it should.

It can harm its own party's node. It can neither give that node a word for another, nor
move anybody else's clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.custodian_port import custodian_line, custodian_port
from tests.support.custody_meeting import custodian_of
from tests.support.federation_in_memory import START, Federation, HandClock, quoting
from tests.support.hostile_platforms import CountingPlatform
from tests.support.open_server import open_server
from tests.support.running import Run
from tests.support.unwarranted import check_unwarranted, unwarranted
from typing_extensions import override

from cloister.custody.custodian import Custodian, Proved
from cloister.errors import CloisterError, RefusedByPeer
from cloister.ratls.enrolling import enrol
from cloister.ratls.identity import new_identity
from cloister.ratls.node import Node
from cloister.ratls.warrant import Warrant, WarrantTerms, sign_warrant

NOW = int(START.timestamp())
HOUR = 3600
CENTURY = 100 * 365 * 24 * HOUR


@dataclass(frozen=True, slots=True, kw_only=True)
class OddCustodian(Custodian):
    """Changes what it signs.

    Attributes:
        change: What stands in the warrant instead.
    """

    change: Callable[[WarrantTerms], dict[str, Any]]

    @override
    def warrant(self, proved: Proved) -> Warrant:
        terms = Custodian.warrant(self, proved).terms
        odd = msgspec.structs.replace(terms, **self.change(terms))
        return sign_warrant(odd, self.key)


def odd(
    custodian: Custodian, change: Callable[[WarrantTerms], dict[str, Any]]
) -> OddCustodian:
    kept = {field.name: getattr(custodian, field.name) for field in fields(Custodian)}
    return OddCustodian(**kept, change=change)


FOREIGN: list[dict[str, Any]] = [
    {"tls_key": new_identity().tls_spki},
    {"party": "bob"},
    {"role": "server"},
    {"run_id": "blobs/b"},
    {"plan_hash": bytes(32)},
]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        *((change, "warrant-foreign") for change in FOREIGN),
        ({"issued_at": NOW - 7200, "expires_at": NOW}, "warrant-expired"),
        ({"expires_at": NOW}, "warrant-malformed"),
        ({"issued_at": 2**53, "expires_at": 2**53}, "time-invalid"),
    ],
    ids=[*(next(iter(it)) for it in FOREIGN), "expired", "empty", "no-calendar"],
)
def test_a_node_holds_no_word_that_is_not_for_it(
    run: Run, federation: Federation, tmp_path: Path, change: Any, code: str
) -> None:
    with custodian_of(federation, "alice", tmp_path) as honest:

        async def story() -> None:
            node, _ = unwarranted(federation, "alice")
            custodian = odd(honest, lambda _: change)
            async with (
                custodian_port(custodian) as office,
                custodian_line(node, office.address) as line,
            ):
                with pytest.raises(CloisterError) as caught:
                    await line.renew()
                assert caught.value.code == code
                # The custodian hears why.
                assert office.refusals() == [code]
            check_unwarranted(node)

        run(story())


async def warranted_by(custodian: Custodian, node: Node) -> None:
    async with (
        custodian_port(custodian) as office,
        custodian_line(node, office.address) as line,
    ):
        await line.renew()


@pytest.mark.parametrize(
    ("ahead", "code"), [(HOUR, "warrant-expired"), (CENTURY, "certificate-expired")]
)
def test_a_custodian_ahead_of_time_stops_its_own_node_and_nobody_elses(
    run: Run, federation: Federation, tmp_path: Path, ahead: int, code: str
) -> None:
    with custodian_of(federation, "alice", tmp_path / "custody") as honest:
        custodian = odd(
            honest,
            lambda terms: {
                "issued_at": terms.issued_at + ahead,
                "expires_at": terms.expires_at + ahead,
            },
        )

        async def story() -> None:
            server, bob = federation.node("aggregator"), federation.node("bob")
            counting = CountingPlatform(server.platform)
            node, _ = unwarranted(federation, "alice")
            await warranted_by(custodian, node)
            # Its own party's word is what it goes by.
            assert node.clock().timestamp() == NOW + ahead
            async with open_server(quoting(server, counting), tmp_path / "run") as port:
                made = counting.quotes
                with pytest.raises(CloisterError) as caught:
                    await enrol(node, port.enrolment)
                assert caught.value.code == code
                assert counting.quotes == made
                assert port.refusals() == [code]
                # The server's time is what it was, and so is bob's admission.
                assert server.clock() == START
                await enrol(bob, port.enrolment)
                assert bob.clock() == START
                assert port.admitted() == [("bob", 1)]

        run(story())


def test_a_warrant_for_a_century_admits_for_no_longer_than_the_plan_says(
    run: Run, federation: Federation, server: Node, clock: HandClock, tmp_path: Path
) -> None:
    with custodian_of(federation, "alice", tmp_path / "custody") as honest:
        custodian = odd(honest, lambda _: {"expires_at": NOW + CENTURY})

        async def story() -> None:
            node, _ = unwarranted(federation, "alice")
            await warranted_by(custodian, node)
            async with open_server(server, tmp_path / "run") as port:
                await enrol(node, port.enrolment)
                [admitted] = port.ports.table.admitted()
                life = timedelta(seconds=federation.plan.admission.life_seconds)
                assert admitted.expires_at == START + life
                clock.forward(life)
                with pytest.raises(CloisterError) as caught:
                    port.ports.table.check(node.identity.tls_spki)
                assert caught.value.code == "admission-lapsed"

        run(story())


def test_a_custodian_that_skips_an_epoch_does_not_make_its_former_node_newer(
    run: Run, federation: Federation, server: Node, tmp_path: Path
) -> None:
    """Epochs are the party's to count; what it counted past is gone for everybody."""
    with custodian_of(federation, "alice", tmp_path / "custody") as honest:

        async def story() -> None:
            ahead, after = (unwarranted(federation, "alice")[0] for _ in range(2))
            await warranted_by(odd(honest, lambda _: {"epoch": 2**53}), ahead)
            await warranted_by(honest, after)
            assert after.warrant.current.terms.epoch == 2
            async with open_server(server, tmp_path / "run") as port:
                await enrol(ahead, port.enrolment)
                with pytest.raises(RefusedByPeer) as caught:
                    await enrol(after, port.enrolment)
                assert caught.value.code == "epoch-old"
                assert port.admitted() == [("alice", 2**53)]
                assert port.refusals() == ["epoch-old"]
                # It is alice's own trouble: bob never had an epoch of hers.
                await enrol(federation.node("bob"), port.enrolment)
                assert port.admitted() == [("alice", 2**53), ("bob", 1)]

        run(story())
