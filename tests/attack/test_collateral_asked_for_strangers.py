"""A stranger sends quotes that anybody can have, to have a service asked for each.

While a service is asked, others may wait; and where it does not answer about some
platform, they would wait for long. A custodian shut out in this way signs for nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.asked_collateral import asking, asking_node
from tests.support.custodian_port import custodian_line, custodian_port
from tests.support.custody_meeting import custodian_of
from tests.support.federation_in_memory import Federation, make_federation, quoting
from tests.support.open_server import open_server
from tests.support.plan_tree import by_identity
from tests.support.running import Run
from tests.support.unwarranted import code_at, on, unwarranted
from typing_extensions import override

from cloister.attestation.platforms import Platform
from cloister.attestation.platforms.simulated.platform import SimulatedPlatform
from cloister.errors import RefusedByPeer
from cloister.ratls.enrolling import enrol
from cloister.ratls.proofs import EvidenceProver

LOG = ["logs/aggregator.jsonl"]
FLOOD = 20
# What some quote was made for that everybody can have.
PUBLIC = 64 * b"p"


class Replaying:
    """Answers every request for evidence with one public quote."""

    simulated = True

    def __init__(self, platform: Platform) -> None:
        self.name, self.tee = platform.name, platform.tee
        self._quote = platform.quote(PUBLIC)

    def quote(self, report_data: bytes) -> bytes:
        assert len(report_data) == len(PUBLIC)
        return self._quote


class Fitting(Replaying):
    """The same, with the wanted report data put into it."""

    @override
    def quote(self, report_data: bytes) -> bytes:
        return super().quote(report_data).replace(PUBLIC, report_data, 1)


def gluing(platform: SimulatedPlatform, other: SimulatedPlatform) -> Platform:
    """Returns what signs with a key of its own, behind a genuine machine's chain."""
    return replace(platform, _attestation_key=other._attestation_key)


FORGERIES: list[tuple[Callable[[Federation], Platform], str]] = [
    (lambda it: Replaying(it.platform("alice")), "report-data"),
    (lambda it: Fitting(it.platform("alice")), "quote-signature"),
    (lambda it: gluing(it.platform("alice"), it.platform("bob")), "qe-report-binding"),
]


@pytest.mark.parametrize(("forge", "code"), FORGERIES)
def test_a_custodian_asks_for_nothing_on_a_strangers_word(
    run: Run,
    federation: Federation,
    tmp_path: Path,
    forge: Callable[[Federation], Platform],
    code: str,
) -> None:
    appraiser, source = asking(federation)
    stranger = on(forge(federation), federation.node("alice"))

    async def story() -> None:
        with custodian_of(federation, "alice", tmp_path) as usual:
            custodian = replace(usual, appraiser=appraiser)
            async with custodian_port(custodian) as office:
                for _ in range(FLOOD):
                    assert await code_at(stranger, office.address) == code
                assert source.asked == []
                assert custodian.register.warrants() == ()
                # Alice's own node comes through at once.
                node, _ = unwarranted(federation, "alice")
                async with custodian_line(node, office.address) as line:
                    await line.renew()
                assert source.asked == ["tdx"]
                assert [row.epoch for row in custodian.register.warrants()] == [1]

    run(story())


@pytest.mark.parametrize(("forge", "code"), FORGERIES)
def test_a_server_asks_for_nothing_on_a_replayed_quote(
    run: Run,
    federation: Federation,
    tmp_path: Path,
    forge: Callable[[Federation], Platform],
    code: str,
) -> None:
    """Even of a node that its party warranted."""
    server, source = asking_node(federation, "aggregator")
    replaying = quoting(federation.node("alice"), forge(federation))

    async def story() -> None:
        async with open_server(server, tmp_path) as port:
            source.asked.clear()
            for _ in range(3):
                with pytest.raises(RefusedByPeer) as caught:
                    await enrol(replaying, port.enrolment)
                assert caught.value.code == code
            assert source.asked == []
            assert port.admitted() == []
            assert port.refusals() == [code] * 3
            assert port.files() == LOG

    run(story())


def test_evidence_of_a_party_admitted_by_its_key_has_nobody_asked(
    run: Run, tmp_path: Path
) -> None:
    """Bob has a genuine machine, and may show anything; the plan asks for his key."""
    mixed = make_federation(
        tmp_path / "keys", change=lambda tree: by_identity(tree, "bob")
    )
    server, source = asking_node(mixed, "aggregator")
    bob = replace(
        mixed.node("bob"), prover=EvidenceProver(platform=mixed.platform("bob"))
    )

    async def story() -> None:
        async with open_server(server, tmp_path / "run") as port:
            source.asked.clear()
            for _ in range(3):
                with pytest.raises(RefusedByPeer) as caught:
                    await enrol(bob, port.enrolment)
                assert caught.value.code == "proof-kind"
            assert source.asked == []
            assert port.admitted() == []
            assert port.refusals() == ["proof-kind"] * 3
            assert port.files() == LOG

    run(story())
