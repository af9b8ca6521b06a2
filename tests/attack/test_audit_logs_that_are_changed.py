"""Whoever owns the server's host owns the log's file, and wants it to say otherwise.

He can do all that needs no key of a genuine server: take records out, move and alter
them, cut the end, start another server and show each auditor another log. He may have
keys of his own, and one party's.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.support.made_audit import (
    AuditedRun,
    audited_federation,
    code_of_log,
    lines_of,
    links_in,
    signed_head,
    verify_bytes,
)
from typing_extensions import override

from cloister.federation.audit_records import (
    NodeAdmitted,
    RoundCompleted,
    ServerIntroduced,
    encode_entry,
    parse_entry,
)
from cloister.federation.audit_signing import ServerSigner
from cloister.federation.auditing.report import Anchors
from cloister.plan.keys import format_party_key
from cloister.plan.plan import plan_hash
from cloister.ratls.identity import new_identity
from cloister.storage.audit_chain import Link, next_link


@pytest.fixture
def run(tmp_path: Path) -> AuditedRun:
    made = AuditedRun(audited_federation(tmp_path), tmp_path / "audit.jsonl")
    made.whole()
    return made


def resigned(links: list[Link], at: int, entry: bytes, signer: ServerSigner) -> bytes:
    """Returns a log with another entry, and all links after it made anew."""
    made = links[:at]
    for link in links[at:]:
        made.append(
            next_link(
                made[-1] if made else None,
                entry=entry if link.seq == at else link.entry,
                at_ms=link.at_ms,
                signer=signer,
            )
        )
    return lines_of(*made)


def test_a_record_that_is_removed_is_missed(run: AuditedRun) -> None:
    links = run.links()
    for gone in range(len(links) - 1):
        code = code_of_log(lines_of(*links[:gone], *links[gone + 1 :]))
        assert code == "audit-order", gone


def test_a_removed_record_is_missed_also_where_the_rest_is_numbered_anew(
    run: AuditedRun,
) -> None:
    links = run.links()
    stranger = ServerSigner(new_identity())
    made: list[Link] = []
    for link in links[:5] + links[6:]:
        # Without the server's key, only records before the gap keep their signature.
        made.append(
            next_link(
                made[-1] if made else None,
                entry=link.entry,
                at_ms=link.at_ms,
                signer=stranger,
            )
            if link.seq > 5
            else link
        )
    assert code_of_log(lines_of(*made)) == "audit-signer"


def test_the_servers_name_on_a_strangers_signature_does_not_help(
    run: AuditedRun,
) -> None:
    links = run.links()

    class Posing(ServerSigner):
        @property
        @override
        def keyid(self) -> str:
            return links[-1].envelope.keyid

    forged = resigned(links, 6, links[6].entry, Posing(new_identity()))
    assert code_of_log(forged) == "audit-signature"


def test_two_records_that_change_places_are_found(run: AuditedRun) -> None:
    links = run.links()
    for at in range(len(links) - 1):
        swapped = [*links[:at], links[at + 1], links[at], *links[at + 2 :]]
        assert code_of_log(lines_of(*swapped)) == "audit-order", at


def test_a_record_that_is_told_twice_is_found(run: AuditedRun) -> None:
    links = run.links()
    for at in range(len(links)):
        doubled = [*links[: at + 1], *links[at:]]
        assert code_of_log(lines_of(*doubled)) == "audit-order", at


def test_a_word_that_is_altered_in_any_record_is_found(run: AuditedRun) -> None:
    links = run.links()
    for at, link in enumerate(links):
        payload = link.envelope.payload
        changed = payload.replace(b'"at":1', b'"at":2', 1)
        assert changed != payload
        altered = replace(link, envelope=replace(link.envelope, payload=changed))
        log = lines_of(*links[:at], altered, *links[at + 1 :])
        assert code_of_log(log) in {"audit-broken", "audit-signature", "audit-order"}


def test_a_last_record_that_is_altered_needs_the_servers_key(run: AuditedRun) -> None:
    links = run.links()
    sealed = parse_entry(links[-1].entry)
    other = encode_entry(msgspec.structs.replace(sealed, sha256="6" * 64))
    payload = links[-1].envelope.payload.replace(links[-1].entry, other)
    forged = replace(links[-1], envelope=replace(links[-1].envelope, payload=payload))
    assert code_of_log(lines_of(*links[:-1], forged)) == "audit-signature"


def test_a_cut_tail_is_a_good_log_that_is_not_proven(run: AuditedRun) -> None:
    links = run.links()
    for end in range(3, len(links)):
        report = verify_bytes(lines_of(*links[:end]))
        assert report.unproven == report.records == end
        assert report.proven is None


def test_a_cut_tail_is_found_by_what_one_custodian_knows(run: AuditedRun) -> None:
    links, head = run.links(), run.head("alice")
    for end in range(3, len(links)):
        assert code_of_log(lines_of(*links[:end]), head) == "audit-cut", end
    report = verify_bytes(lines_of(*links), head, anchors=run.anchors)
    assert report.unproven == 0


def test_a_log_cut_in_the_middle_of_its_opening_proves_nothing(run: AuditedRun) -> None:
    for end in (1, 2):
        assert code_of_log(lines_of(*run.links()[:end])) == "audit-signer"


def test_two_forks_shown_to_two_auditors_are_found_by_two_heads(tmp_path: Path) -> None:
    run = AuditedRun(audited_federation(tmp_path), tmp_path / "audit.jsonl")
    run.begin()
    run.admit_all()
    run.complete(run.publish())
    run.log.close()
    fork = run.path.read_bytes()
    # The first server's log goes on; its custodians keep a mark.
    alices = run.mark()
    # The host starts a second server from a copy of an earlier state of the disk.
    run.path.write_bytes(lines_of(*links_in(fork)[:4]))
    run.begin(epoch=2)
    run.admit_all()
    run.train(2)
    run.log.close()
    bobs = run.mark()
    second = run.path.read_bytes()

    heads = [
        signed_head(run.federation, "alice", alices, at=run.clock),
        signed_head(run.federation, "bob", bobs, at=run.clock),
    ]
    # Each log alone is good, and so is each with the head of its own fork.
    for log, head in ((fork, heads[0]), (second, heads[1])):
        assert verify_bytes(log, head, anchors=run.anchors).unproven == 0
    # Auditors who compare heads find out, whichever log they hold.
    assert code_of_log(second, heads[0]) == "audit-forked"
    assert code_of_log(second, *heads) == "audit-forked"
    # To the first it may as well be the same log gone on: a later server's is missing.
    assert code_of_log(fork, *heads) == "audit-cut"


def test_a_fork_that_the_same_server_is_said_to_have_written_is_found(
    run: AuditedRun,
) -> None:
    links = run.links()
    # What only a server outside its TEE could do: it tells bob of another record.
    mark = msgspec.structs.replace(
        run.mark(), round=1, state=bytes([1]) * 32, audit_head=bytes(range(32))
    )
    head = signed_head(run.federation, "bob", mark, at=run.clock)
    assert code_of_log(lines_of(*links), head) == "audit-forked"


def test_evidence_swapped_for_another_nodes_breaks_the_signature(
    run: AuditedRun,
) -> None:
    links = run.links()
    alice, bob = (parse_entry(links[at].entry) for at in (4, 5))
    assert isinstance(alice, NodeAdmitted)
    assert isinstance(bob, NodeAdmitted)
    swapped = msgspec.structs.replace(
        alice,
        testimony=msgspec.structs.replace(alice.testimony, proof=bob.testimony.proof),
    )
    stranger = ServerSigner(new_identity())
    log = resigned(links, 4, encode_entry(swapped), stranger)
    assert code_of_log(log) == "audit-signer"


def test_evidence_swapped_for_another_nodes_is_judged_again(tmp_path: Path) -> None:
    """Even where the server itself would sign it."""
    run = AuditedRun(audited_federation(tmp_path), tmp_path / "audit.jsonl")
    run.begin()
    run.admit_all()
    alice, bob = run.entries()[4:6]
    assert isinstance(alice, NodeAdmitted)
    assert isinstance(bob, NodeAdmitted)
    run.lie(
        msgspec.structs.replace(
            alice,
            testimony=msgspec.structs.replace(
                alice.testimony,
                proof=bob.testimony.proof,
                collateral=bob.testimony.collateral,
            ),
        )
    )
    assert code_of_log(run.path.read_bytes()) == "audit-report-data"


def test_a_servers_introduction_does_not_fit_behind_other_records(
    run: AuditedRun,
) -> None:
    links = run.links()
    introduction = parse_entry(links[2].entry)
    assert isinstance(introduction, ServerIntroduced)
    # The very server signs it, behind a log that lacks the collateral of before.
    signer = ServerSigner(run.server.identity)
    made = [links[0], links[1]]
    made.append(next_link(made[-1], entry=links[1].entry, at_ms=0, signer=signer))
    made.append(next_link(made[-1], entry=links[2].entry, at_ms=0, signer=signer))
    assert code_of_log(lines_of(*made)) == "audit-report-data"


def test_a_former_servers_records_do_not_count_after_the_next_one_began(
    tmp_path: Path,
) -> None:
    run = AuditedRun(audited_federation(tmp_path), tmp_path / "audit.jsonl")
    run.begin()
    former = run.server
    run.log.close()
    run.begin(epoch=2)
    run.log.close()
    run.server, newer = former, run.server
    run.lie(run.entries()[1])
    # Collateral says nothing of who writes, so it waits for an introduction.
    assert verify_bytes(run.path.read_bytes()).unsigned == 1
    run.lie(RoundCompleted(round=1, head="0" * 64, participants=(), state=None))
    assert code_of_log(run.path.read_bytes()) == "audit-signer"
    assert newer.warrant.current.terms.epoch == 2


def test_the_hosts_own_parties_do_not_pass_for_those_that_the_auditor_knows(
    run: AuditedRun, tmp_path: Path
) -> None:
    """The host writes a plan with keys of his own, and real code that he runs."""
    (tmp_path / "host").mkdir()
    hosts = AuditedRun(
        audited_federation(tmp_path / "host"), tmp_path / "host" / "audit.jsonl"
    )
    hosts.whole()
    log = hosts.path.read_bytes()
    # Alone, nothing is wrong with it, and the report says what was not compared.
    assert set(verify_bytes(log).keys_not_compared) == {"aggregator", "alice", "bob"}
    alices = format_party_key(run.federation.keys["alice"])
    assert code_of_log(log, anchors=Anchors(party_keys={"alice": alices})) == (
        "audit-anchor"
    )
    plan = plan_hash(run.federation.plan)
    assert code_of_log(log, anchors=Anchors(plan_hash=plan)) == "audit-anchor"
    assert code_of_log(log, run.head("alice")) == "audit-head-foreign"


def test_a_head_that_the_host_signs_for_a_party_does_not_count(run: AuditedRun) -> None:
    hosts = {**run.federation.keys, "alice": Ed25519PrivateKey.generate()}
    forged = signed_head(
        replace(run.federation, keys=hosts), "alice", run.mark(), at=run.clock
    )
    named = replace(forged, keyid=run.head("alice").keyid)
    for head in (forged, named):
        assert code_of_log(run.path.read_bytes(), head) == "audit-head-signature"


def test_one_partys_key_makes_no_other_partys_head(run: AuditedRun) -> None:
    """Whoever owns bob's custodian speaks for bob, and for nobody else."""
    bobs = {**run.federation.keys, "alice": run.federation.keys["bob"]}
    forged = signed_head(
        replace(run.federation, keys=bobs), "alice", run.mark(), at=run.clock
    )
    assert code_of_log(run.path.read_bytes(), forged) == "audit-head-signature"
