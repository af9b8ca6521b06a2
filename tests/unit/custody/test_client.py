from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import msgspec
import pytest
from tests.support.addresses import free_addresses
from tests.support.bad_collateral import (
    expired,
    good,
    judging_by,
    torn,
    write_collateral,
)
from tests.support.custodian_port import custodian_line, custodian_port
from tests.support.custodians import text_of
from tests.support.custody_meeting import custodian_of
from tests.support.federation_in_memory import (
    START,
    WARRANT_LIFE,
    Federation,
    HandClock,
    quoting,
)
from tests.support.meeting import Meeting
from tests.support.plan_tree import measurement_of
from tests.support.recorded_log import RecordedLog
from tests.support.registers import shown_by
from tests.support.running import Run, until

from cloister.attestation.policy import Policy
from cloister.custody.client import CustodianLine
from cloister.custody.custodian import Custodian
from cloister.custody.register_records import WARRANTS_AN_HOUR
from cloister.errors import (
    PeerInTrouble,
    ProtocolError,
    RefusedByPeer,
    VerificationError,
)
from cloister.federation.warranting import Renewal
from cloister.plan.amendment import successor_text
from cloister.plan.consent import sign_consent
from cloister.plan.plan import parse_plan, plan_hash
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node
from cloister.ratls.warrant import HeldWarrant

MARK = Mark(round=1, state=b"s" * 32, server_epoch=1, server_key=b"k" * 32)
LATER = msgspec.structs.replace(MARK, round=2, state=b"t" * 32)


@pytest.fixture
def alice(federation: Federation, clock: HandClock) -> Node:
    """Alice's node before anybody warranted it."""
    return replace(federation.node("alice", clock=clock), warrant=HeldWarrant())


def known(custodian: Custodian, federation: Federation) -> Mark | None:
    """Returns what the custodian remembers of the run."""
    return custodian.register.mark(federation.plan.run_id)


def epochs(custodian: Custodian) -> list[int]:
    return [row.epoch for row in custodian.register.warrants()]


def test_a_node_gets_a_warrant_that_its_server_accepts(
    run: Run, custodian: Custodian, alice: Node, server: Node
) -> None:
    async def story() -> None:
        log = RecordedLog()
        async with (
            custodian_port(custodian) as office,
            custodian_line(alice, office.address, log=log) as line,
        ):
            await line.first_warrant(patience_seconds=5)
            assert line.mark is None
            terms = alice.warrant.current.terms
            assert log.events == [
                {
                    "event": "warranted",
                    "level": "info",
                    "epoch": 1,
                    "expires_at": terms.expires_at,
                    "round": 0,
                }
            ]
        Meeting(server, alice).finish()

    run(story())


def test_a_renewal_keeps_the_epoch_and_is_held_at_once(
    run: Run, custodian: Custodian, alice: Node, clock: HandClock
) -> None:
    async def story() -> None:
        async with (
            custodian_port(custodian) as office,
            custodian_line(alice, office.address) as line,
        ):
            await line.renew()
            first = alice.warrant.current.terms
            clock.forward(WARRANT_LIFE + timedelta(hours=1))
            await line.renew()
            second = alice.warrant.current.terms
            assert (second.epoch, first.epoch) == (1, 1)
            assert second.issued_at > first.expires_at
            # The former session was given up, not left open.
            await until(lambda: office.sessions() == 1)

    run(story())


def test_a_new_node_gets_the_next_epoch_and_the_old_one_is_out_for_ever(
    run: Run,
    federation: Federation,
    custodian: Custodian,
    alice: Node,
    clock: HandClock,
) -> None:
    async def story() -> None:
        newer = federation.node("alice", clock=clock)
        async with (
            custodian_port(custodian) as office,
            custodian_line(alice, office.address) as old,
            custodian_line(newer, office.address) as new,
        ):
            await old.renew()
            await old.deposit(MARK)
            await new.renew()
            assert newer.warrant.current.terms.epoch == 2
            assert new.mark == MARK
            for act in (old.deposit(LATER), old.renew(), old.renew()):
                with pytest.raises(RefusedByPeer) as caught:
                    await act
                assert caught.value.code == "warrant-superseded"
            await new.deposit(LATER)
        assert epochs(custodian) == [1, 2]
        assert known(custodian, federation) == LATER

    run(story())


def test_deposits_are_remembered_one_after_the_other(
    run: Run, federation: Federation, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        async with (
            custodian_port(custodian) as office,
            custodian_line(alice, office.address) as line,
        ):
            await line.renew()
            for mark in (MARK, LATER, LATER):
                await line.deposit(mark)
                assert line.mark == known(custodian, federation) == mark
            assert office.sessions() == 1
            assert len(office.log.named("warrant-signed")) == 1

    run(story())


def test_a_deposit_that_contradicts_the_last_one_is_refused_with_the_reason(
    run: Run, federation: Federation, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        async with (
            custodian_port(custodian) as office,
            custodian_line(alice, office.address) as line,
        ):
            await line.renew()
            await line.deposit(LATER)
            with pytest.raises(RefusedByPeer) as caught:
                await line.deposit(MARK)
            assert caught.value.code == "mark-old"
            assert "round 2" in caught.value.expected
            assert line.mark == known(custodian, federation) == LATER
            # The line recovers from a refusal, for what is right.
            await line.deposit(msgspec.structs.replace(LATER, round=3))

    run(story())


def test_a_line_that_never_met_anybody_meets_the_custodian_to_deposit(
    run: Run, federation: Federation, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        async with (
            custodian_port(custodian) as office,
            custodian_line(alice, office.address) as line,
        ):
            await line.deposit(MARK)
            assert known(custodian, federation) == MARK
            assert alice.warrant.current.terms.epoch == 1

    run(story())


def test_a_custodian_that_was_started_anew_is_met_again(
    run: Run, federation: Federation, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        [address] = free_addresses(1)
        async with custodian_line(alice, address) as line:
            async with custodian_port(custodian, address=address):
                await line.renew()
                await line.deposit(MARK)
            async with custodian_port(custodian, address=address) as office:
                await line.deposit(LATER)
                # Met again under a new TLS key, with the same epoch.
                [signed] = office.log.named("warrant-signed")
                assert signed["epoch"] == 1
            assert known(custodian, federation) == LATER

    run(story())


def test_a_custodian_that_is_away_is_told_from_one_that_refuses(
    run: Run, federation: Federation, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        [address] = free_addresses(1)
        async with custodian_line(alice, address) as line:
            async with custodian_port(custodian, address=address):
                await line.renew()
            for act in (line.deposit(MARK), line.renew()):
                with pytest.raises(ProtocolError) as caught:
                    await act
                assert caught.value.code == "custodian-unreachable"
                assert str(address) in str(caught.value)
            # What was missed is not lost: the caller tries again.
            async with custodian_port(custodian, address=address):
                await line.deposit(MARK)
            assert known(custodian, federation) == MARK

    run(story())


def test_a_node_waits_for_its_custodian_and_says_so_once(
    run: Run, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        [address] = free_addresses(1)
        log = RecordedLog()
        async with custodian_line(alice, address, log=log) as line:
            waiting = asyncio.ensure_future(line.first_warrant(patience_seconds=20))
            await until(lambda: log.events != [])
            async with custodian_port(custodian, address=address):
                await waiting
        [line_said] = log.named("waiting-for-custodian")
        assert line_said["code"] == "custodian-unreachable"
        assert line_said["custodian"] == str(address)
        assert alice.warrant.current.terms.epoch == 1

    run(story())


def test_a_node_waits_for_its_partys_consent(
    run: Run, federation: Federation, alice: Node, tmp_path: Path
) -> None:
    """A person reads the plan and signs it; the node is there already."""

    async def story() -> None:
        plan = federation.plan
        other = msgspec.structs.replace(
            plan, plan=msgspec.structs.replace(plan.plan, run="other")
        )
        log = RecordedLog()
        with custodian_of(federation, "alice", tmp_path, plan=other) as custodian:
            async with (
                custodian_port(custodian) as office,
                custodian_line(alice, office.address, log=log) as line,
            ):
                waiting = asyncio.ensure_future(line.first_warrant(patience_seconds=20))
                await until(lambda: log.events != [])
                consent = sign_consent(plan, party="alice", key=custodian.key, at=START)
                custodian.register.adopt(text_of(plan), consent, at=START)
                await waiting
        [said] = log.named("waiting-for-custodian")
        assert said["code"] == "plan-not-consented"
        assert alice.warrant.current.terms.run_id == plan.run_id

    run(story())


def test_a_node_gives_up_when_its_patience_is_over(
    run: Run, federation: Federation, alice: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        [address] = free_addresses(1)
        async with custodian_line(alice, address) as line:
            with pytest.raises(ProtocolError) as caught:
                await line.first_warrant(patience_seconds=0)
            assert caught.value.code == "custodian-unreachable"
            assert "Start it" in caught.value.remedy
        other = msgspec.structs.replace(
            federation.plan,
            plan=msgspec.structs.replace(federation.plan.plan, run="other"),
        )
        with custodian_of(federation, "alice", tmp_path, plan=other) as custodian:
            async with (
                custodian_port(custodian) as office,
                custodian_line(alice, office.address) as line,
            ):
                with pytest.raises(RefusedByPeer) as refused:
                    await line.first_warrant(patience_seconds=0)
                assert refused.value.code == "plan-not-consented"

    run(story())


def test_nobody_waits_for_a_plan_that_was_withdrawn(
    run: Run, federation: Federation, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        custodian.register.withdraw(plan_hash(federation.plan), at=START)
        async with (
            custodian_port(custodian) as office,
            custodian_line(alice, office.address) as line,
        ):
            with pytest.raises(RefusedByPeer) as caught:
                await line.first_warrant(patience_seconds=60)
            assert caught.value.code == "plan-withdrawn"

    run(story())


def test_a_plan_that_is_withdrawn_ends_a_running_node_at_its_next_word(
    run: Run, federation: Federation, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        async with (
            custodian_port(custodian) as office,
            custodian_line(alice, office.address) as line,
        ):
            await line.renew()
            custodian.register.withdraw(plan_hash(federation.plan), at=START)
            for act in (line.deposit(MARK), line.renew()):
                with pytest.raises(RefusedByPeer) as caught:
                    await act
                assert caught.value.code == "plan-withdrawn"
            assert known(custodian, federation) is None

    run(story())


def test_a_partys_tighter_policy_refuses_its_own_node(
    run: Run, federation: Federation, alice: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        plans = federation.plan.policy_for("worker")
        enclaves_alone = Policy(root=plans.root, sgx=plans.sgx)
        with custodian_of(
            federation, "alice", tmp_path, local_policy=enclaves_alone
        ) as custodian:
            async with (
                custodian_port(custodian) as office,
                custodian_line(alice, office.address) as line,
            ):
                with pytest.raises(RefusedByPeer) as caught:
                    await line.first_warrant(patience_seconds=60)
                assert caught.value.code == "appraisal-measurement"
                # What the party wants is for the party's own log.
                assert caught.value.expected == ""
                assert office.refusals() == ["appraisal-measurement"]
                assert epochs(custodian) == []

    run(story())


def test_a_node_that_runs_other_code_gets_no_warrant(
    run: Run, federation: Federation, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        other = measurement_of("worker", task_source=b"other")
        node = quoting(alice, federation.platform("alice", measurement=other))
        async with (
            custodian_port(custodian) as office,
            custodian_line(node, office.address) as line,
        ):
            with pytest.raises(RefusedByPeer) as caught:
                await line.first_warrant(patience_seconds=60)
            assert caught.value.code == "appraisal-measurement"
            with pytest.raises(ProtocolError):
                _ = node.warrant.current

    run(story())


def test_a_party_by_identity_has_a_custodian_all_the_same(
    run: Run, mixed: Federation, clock: HandClock, tmp_path: Path
) -> None:
    async def story() -> None:
        bob = mixed.node("bob", clock=clock)
        with custodian_of(mixed, "bob", tmp_path, clock=clock) as custodian:
            async with (
                custodian_port(custodian) as office,
                custodian_line(bob, office.address) as line,
            ):
                await line.first_warrant(patience_seconds=5)
                await line.deposit(MARK)
                [signed] = office.log.named("warrant-signed")
                assert signed["admit"] == "identity"
            assert known(custodian, mixed) == MARK
        Meeting(mixed.node("aggregator", clock=clock), bob).finish()

    run(story())


def test_another_partys_custodian_is_not_spoken_to(
    run: Run, federation: Federation, alice: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        with custodian_of(federation, "bob", tmp_path) as bobs:
            async with (
                custodian_port(bobs) as office,
                custodian_line(alice, office.address) as line,
            ):
                with pytest.raises(VerificationError) as caught:
                    await line.first_warrant(patience_seconds=60)
                assert caught.value.code == "custodian-certificate-signature"
                # It saw a TLS handshake, and no hello.
                assert office.refusals() == []
                assert office.sessions() == 0

    run(story())


def test_somebody_else_at_the_custodians_address_ends_no_node_that_is_at_work(
    run: Run, federation: Federation, custodian: Custodian, alice: Node, tmp_path: Path
) -> None:
    """Whoever can answer there once is nobody; the right one comes back."""

    async def story() -> None:
        [address] = free_addresses(1)
        async with custodian_line(alice, address) as line:
            async with custodian_port(custodian, address=address):
                await line.first_warrant(patience_seconds=5)
                await line.deposit(MARK)
            held = alice.warrant.current
            with custodian_of(federation, "bob", tmp_path) as bobs:
                async with custodian_port(bobs, address=address) as office:
                    for act in (line.renew(), line.deposit(LATER)):
                        with pytest.raises(ProtocolError) as caught:
                            await act
                        assert caught.value.code == "custodian-certificate-signature"
                        assert str(address) in caught.value.what
                    log = RecordedLog()
                    renewal = Renewal(alice, line, log=log.logger())
                    assert await renewal.attempt() is not None
                    [said] = log.named("warrant-renewal-failed")
                    assert said["code"] == "custodian-certificate-signature"
                    # It learned nothing, and changed nothing.
                    assert office.sessions() == 0
                    assert alice.warrant.current == held
            async with custodian_port(custodian, address=address):
                await line.deposit(LATER)
            assert known(custodian, federation) == LATER
            assert epochs(custodian) == [1]

    run(story())


def test_a_custodian_in_trouble_ends_no_node_and_warrants_it_later(
    run: Run, federation: Federation, custodian: Custodian, alice: Node, tmp_path: Path
) -> None:
    """Its collateral is out of date, then torn: neither is a word about the node."""
    directory = tmp_path / "collateral"
    judging = replace(custodian, appraiser=judging_by(custodian.appraiser, directory))

    async def story() -> None:
        async with (
            custodian_port(judging) as office,
            custodian_line(alice, office.address) as line,
        ):
            write_collateral(federation, directory, good)
            await line.first_warrant(patience_seconds=5)
            held = alice.warrant.current
            for text, code in ((expired, "crl-expired"), (torn, "collateral-damaged")):
                write_collateral(federation, directory, text)
                for act in (line.renew(), line.deposit(MARK)):
                    with pytest.raises(PeerInTrouble) as caught:
                        await act
                    assert caught.value.code == code
                assert alice.warrant.current == held
            write_collateral(federation, directory, good)
            await line.deposit(MARK)
        assert known(custodian, federation) == MARK
        assert epochs(custodian) == [1]

    run(story())


def test_a_node_that_came_too_often_keeps_its_warrant_and_comes_later(
    run: Run,
    federation: Federation,
    custodian: Custodian,
    alice: Node,
    clock: HandClock,
) -> None:
    """Its host cuts each connection; that is no word about the node."""

    async def story() -> None:
        log = RecordedLog()
        async with (
            custodian_port(custodian) as office,
            custodian_line(alice, office.address, log=log) as line,
        ):
            await line.first_warrant(patience_seconds=5)
            register = custodian.register
            row = register.warrants()[-1]
            for _ in range(1, WARRANTS_AN_HOUR):
                showed = shown_by(
                    federation.plan, alice.identity.tls_spki, party="alice"
                )
                words = msgspec.structs.replace(
                    showed.said, client_encryption_key=row.encryption_key
                )
                register.grant(
                    msgspec.structs.replace(showed, said=words),
                    collateral=None,
                    at=clock(),
                    life=WARRANT_LIFE,
                )
            held, records = alice.warrant.current, len(list(register.records()))
            # Met already, it may tell how far the run is.
            await line.deposit(MARK)
            await line.close()
            for act in (line.renew, partial(line.deposit, LATER)):
                with pytest.raises(PeerInTrouble) as caught:
                    await act()
                assert caught.value.code == "warrant-limit"
            failed = await Renewal(alice, line, log=log.logger()).attempt()
            assert isinstance(failed, PeerInTrouble)
            assert alice.warrant.current == held
            assert len(list(register.records())) == records
            clock.forward(timedelta(hours=1, seconds=1))
            await line.deposit(LATER)
        assert known(custodian, federation) == LATER

    run(story())


def test_a_node_is_told_under_which_plan_its_partys_mark_was_deposited(
    run: Run, federation: Federation, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        async with (
            custodian_port(custodian) as office,
            custodian_line(alice, office.address) as line,
        ):
            await line.first_warrant(patience_seconds=5)
            assert (line.mark, line.mark_plan) == (None, None)
            await line.deposit(MARK)
            assert (line.mark, line.mark_plan) == (MARK, alice.plan_hash)
            # An amendment takes over, and finds the mark of the plan before.
            text = successor_text(
                text_of(federation.plan), federation.plan, state=MARK.state, round=1
            ).encode()
            successor = parse_plan(text)
            consent = sign_consent(
                successor, party="alice", key=custodian.key, at=START
            )
            custodian.register.adopt(text, consent, at=START)
            amended = replace(federation, plan=successor)
            node = replace(amended.node("alice"), warrant=HeldWarrant())
            async with custodian_line(node, office.address) as its_line:
                await its_line.first_warrant(patience_seconds=5)
                assert its_line.mark == MARK
                assert its_line.mark_plan == plan_hash(federation.plan)
                own = msgspec.structs.replace(LATER, server_epoch=2)
                # The same once more is the former plan's still.
                for mark, digest in (
                    (MARK, plan_hash(federation.plan)),
                    (own, plan_hash(successor)),
                ):
                    await its_line.deposit(mark)
                    assert (its_line.mark, its_line.mark_plan) == (mark, digest)
                    await its_line.renew()
                    assert (its_line.mark, its_line.mark_plan) == (mark, digest)

    run(story())


def test_a_custodian_whose_clock_went_back_is_asked_again(
    run: Run,
    federation: Federation,
    custodian: Custodian,
    alice: Node,
    clock: HandClock,
) -> None:
    async def story() -> None:
        other = HandClock(clock.now)
        judging = replace(
            custodian,
            appraiser=replace(custodian.appraiser, clock=other.floored()),
        )
        async with (
            custodian_port(judging) as office,
            custodian_line(alice, office.address) as line,
        ):
            await line.first_warrant(patience_seconds=5)
            # Another process of the same custodian has written later things.
            custodian.register.withdraw(
                plan_hash(federation.plan), at=clock.now + timedelta(hours=1)
            )
            consent = sign_consent(
                federation.plan, party="alice", key=custodian.key, at=START
            )
            custodian.register.adopt(
                text_of(federation.plan), consent, at=START + timedelta(hours=1)
            )
            for act in (line.renew(), line.deposit(MARK)):
                with pytest.raises(PeerInTrouble) as caught:
                    await act
                assert caught.value.code == "clock-behind"
            other.forward(timedelta(hours=1))
            await line.deposit(MARK)
        assert known(custodian, federation) == MARK

    run(story())


def test_two_things_at_once_take_turns(
    run: Run, federation: Federation, custodian: Custodian, alice: Node
) -> None:
    """A renewal comes in the middle of a round's end; nothing is lost."""

    async def story() -> None:
        async with (
            custodian_port(custodian) as office,
            custodian_line(alice, office.address) as line,
        ):
            await asyncio.gather(
                line.deposit(MARK), line.renew(), line.deposit(LATER), line.renew()
            )
            assert line.mark == known(custodian, federation) == LATER
            await until(lambda: office.sessions() == 1)

    run(story())


def test_a_closed_line_may_be_closed_again_and_used_again(
    run: Run, custodian: Custodian, alice: Node
) -> None:
    async def story() -> None:
        async with custodian_port(custodian) as office:
            line = CustodianLine(alice, office.address, log=RecordedLog().logger())
            await line.close()
            await line.renew()
            await line.close()
            await line.close()
            await until(lambda: office.sessions() == 0)
            await line.deposit(MARK)
            await line.close()

    run(story())
