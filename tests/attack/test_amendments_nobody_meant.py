"""An amendment that slips something in, and a plan that an amendment has ended.

A run goes on under an amendment only if every party's custodian takes it up, and then
never again under the plan before it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.support.custodian_port import custodian_line
from tests.support.custodians import Custodians, Office, text_of
from tests.support.federation_in_memory import START, Federation
from tests.support.open_server import open_server
from tests.support.registers import content_of
from tests.support.running import Run
from tests.support.unwarranted import check_unwarranted, unwarranted

from cloister.custody.client import CustodianLine
from cloister.errors import CloisterError, RefusedByPeer, VerificationError
from cloister.plan.consent import (
    Consent,
    check_consents,
    consents_directory,
    sign_consent,
    write_consent,
)
from cloister.plan.digest import format_digest
from cloister.plan.keys import format_party_key
from cloister.plan.plan import Plan, Predecessor, plan_hash
from cloister.ratls.enrolling import enrol
from cloister.ratls.epochs import key_digest
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node
from cloister.storage.model_vault import new_identity as new_recipient

PARTIES = ("aggregator", "alice", "bob")
STATE = b"s" * 32


@pytest.fixture
def custodians(federation: Federation, tmp_path: Path) -> Custodians:
    return Custodians(
        federation=federation, directory=tmp_path / "custody", plan=federation.plan
    )


def amended(plan: Plan) -> Plan:
    """Returns a good amendment after round 3: two more rounds."""
    before = Predecessor(
        plan=format_digest(plan_hash(plan)), state=format_digest(STATE), round=3
    )
    rounds = plan.training.rounds + 2
    training = msgspec.structs.replace(plan.training, rounds=rounds)
    return msgspec.structs.replace(plan, predecessor=before, training=training)


def for_another_recipient(federation: Federation) -> Plan:
    _, own = new_recipient()
    model = msgspec.structs.replace(federation.plan.model, recipients=(own,))
    return msgspec.structs.replace(amended(federation.plan), model=model)


def with_a_key_of_the_hosts(federation: Federation, other: Federation) -> Plan:
    """Bob stays bob in name; his key is the host's."""
    key = format_party_key(other.keys["bob"])
    plan = amended(federation.plan)
    parties = tuple(
        msgspec.structs.replace(it, key=key) if it.name == "bob" else it
        for it in plan.party
    )
    return msgspec.structs.replace(plan, party=parties)


def consent_of(federation: Federation, plan: Plan, party: str) -> Consent:
    return sign_consent(plan, party=party, key=federation.keys[party], at=START)


def mark_by(server: Node) -> Mark:
    return Mark(
        round=3,
        state=STATE,
        server_epoch=server.warrant.current.terms.epoch,
        server_key=key_digest(server.identity.tls_spki),
    )


async def refusal_of(line: CustodianLine) -> str:
    with pytest.raises(RefusedByPeer) as caught:
        await line.renew()
    return caught.value.code


async def is_not_served(office: Office, federation: Federation, plan: Plan) -> str:
    """Returns why a node of a plan gets no warrant; it gave no evidence."""
    node, counting = unwarranted(federation, office.custodian.party, plan=plan)
    async with custodian_line(node, office.address) as line:
        code = await refusal_of(line)
    check_unwarranted(node)
    assert counting.quotes == 0
    return code


@pytest.mark.parametrize("section", ["model", "party"])
def test_an_amendment_that_slips_something_in_is_taken_up_by_nobody(
    run: Run,
    federation: Federation,
    other_federation: Federation,
    custodians: Custodians,
    section: str,
) -> None:
    """Alice was talked into signing it; her custodian compares all the same."""
    plan = (
        for_another_recipient(federation)
        if section == "model"
        else with_a_key_of_the_hosts(federation, other_federation)
    )

    async def story() -> None:
        server, _ = unwarranted(federation, "aggregator")
        node, _ = unwarranted(federation, "alice")
        async with (
            custodians.office("aggregator") as servers,
            servers.line(server),
            custodians.office("alice") as office,
            office.line(node) as line,
        ):
            await line.deposit(mark_by(server))
            before = content_of(office.register)
            consent = consent_of(federation, plan, "alice")
            with pytest.raises(VerificationError) as caught:
                office.register.adopt(text_of(plan), consent, at=START)
            assert caught.value.code == f"amendment-{section}"
            code = await is_not_served(office, federation, plan)
            assert code == "plan-not-consented"
            assert content_of(office.register) == before
            # The run goes on under the plan that she meant.
            await line.renew()
            await line.deposit(mark_by(server))

    run(story())
    known = custodians.mark("alice")
    assert known is not None
    assert known.round == 3


def test_consents_on_the_hosts_disk_do_not_replace_what_custodians_remember(
    run: Run, federation: Federation, custodians: Custodians, tmp_path: Path
) -> None:
    """Every party's key did sign the amendment; no custodian was asked."""
    plan = for_another_recipient(federation)
    path = tmp_path / "plan.toml"
    path.write_bytes(text_of(plan))
    for party in PARTIES:
        consent = consent_of(federation, plan, party)
        write_consent(consent, consents_directory(path, plan))
    assert len(check_consents(plan, path, at=START).by_party) == 3

    async def story() -> None:
        for party in PARTIES:
            async with custodians.office(party) as office:
                node, _ = unwarranted(federation, party)
                async with office.line(node):
                    before = content_of(office.register)
                    code = await is_not_served(office, federation, plan)
                    assert code == "plan-not-consented"
                    assert content_of(office.register) == before

    run(story())


def test_the_plan_before_an_amendment_is_not_started_again(
    run: Run, federation: Federation, custodians: Custodians, tmp_path: Path
) -> None:
    old_plan, plan = federation.plan, amended(federation.plan)

    async def story() -> None:
        server, _ = unwarranted(federation, "aggregator")
        former, _ = unwarranted(federation, "alice")
        newer, _ = unwarranted(federation, "alice", plan=plan)
        async with (
            custodians.office("aggregator") as servers,
            servers.line(server),
            open_server(server, tmp_path / "run") as port,
            custodians.office("alice") as office,
            office.line(former) as line,
        ):
            await line.deposit(mark_by(server))
            consent = consent_of(federation, plan, "alice")
            office.register.adopt(text_of(plan), consent, at=START)
            async with office.line(newer):
                before = content_of(office.register)
                # Neither a fresh node, nor one that ran all along.
                code = await is_not_served(office, federation, old_plan)
                assert code == "plan-superseded"
                for act in (line.renew(), line.deposit(mark_by(server))):
                    with pytest.raises(RefusedByPeer) as caught:
                        await act
                    assert caught.value.code == "plan-superseded"
                # Nor is the old plan, whose consent is genuine, signed once more.
                again = consent_of(federation, old_plan, "alice")
                with pytest.raises(CloisterError) as refused:
                    office.register.adopt(text_of(old_plan), again, at=START)
                assert refused.value.code == "run-taken"
                assert content_of(office.register) == before

                # A server that stays with the old plan does not get the newer node.
                with pytest.raises(RefusedByPeer) as caught:
                    await enrol(newer, port.enrolment)
                assert caught.value.code == "plan-differs"
            assert port.admitted() == []
            assert port.refusals() == ["plan-differs"]
            states = {row.plan_hash: row.state for row in office.register.plans()}
            assert states == {
                plan_hash(old_plan): "superseded",
                plan_hash(plan): "active",
            }
            epochs = [(it.epoch, it.plan_hash) for it in office.register.warrants()]
            assert epochs == [(1, plan_hash(old_plan)), (2, plan_hash(plan))]

    run(story())


def test_an_amendment_that_only_one_party_took_up_starts_no_other(
    run: Run, federation: Federation, custodians: Custodians
) -> None:
    plan = amended(federation.plan)

    async def story() -> None:
        for party in PARTIES:
            async with custodians.office(party) as office:
                node, _ = unwarranted(federation, party)
                async with office.line(node):
                    pass
                if party == "alice":
                    consent = consent_of(federation, plan, party)
                    office.register.adopt(text_of(plan), consent, at=START)
                    own, _ = unwarranted(federation, party, plan=plan)
                    async with office.line(own):
                        assert own.warrant.current.terms.epoch == 2
                    continue
                code = await is_not_served(office, federation, plan)
                assert code == "plan-not-consented"
                assert [row.epoch for row in office.register.warrants()] == [1]

    run(story())
