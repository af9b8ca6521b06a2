from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from tests.support.federation_in_memory import Federation
from tests.support.made_audit import AuditedRun, lines_of, state_after, text_of
from tests.support.run_audit import open_log_of

from cloister.errors import CloisterError, ConfigError, StorageError, VerificationError
from cloister.federation.audit_log import AuditLog
from cloister.federation.audit_records import (
    CollateralUsed,
    RoundCompleted,
    ServerIntroduced,
    encode_entry,
)
from cloister.federation.audit_signing import ServerSigner
from cloister.federation.audit_start import open_audit
from cloister.plan.digest import format_digest
from cloister.plan.plan import Plan, PlanHash, Predecessor, plan_hash
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node
from cloister.storage.audit_chain import FIRST, next_link
from cloister.storage.audit_file import AuditFile

ORPHAN = CollateralUsed(sha256="c" * 64, text="{}")


@pytest.fixture
def story(federation: Federation, tmp_path: Path) -> AuditedRun:
    """A run that came to its second round, and stopped."""
    made = AuditedRun(federation, tmp_path / "audit.jsonl")
    made.begin()
    made.admit_all()
    made.train(2)
    made.log.close()
    return made


def reopened(
    story: AuditedRun,
    *,
    known: Mark | None = None,
    known_under: PlanHash | None = None,
    plan: Plan | None = None,
) -> AuditLog:
    """Opens the log for the next server."""
    node = story.federation.node("aggregator", clock=story.clock, epoch=2)
    if plan is not None:
        node = replace(node, plan=plan, plan_hash=plan_hash(plan))
    return open_audit(
        story.path,
        node=node,
        consents=(),
        plan_text=text_of(node.plan),
        known=known,
        # Every mark in these stories is of the log's own plan, or of the one before.
        known_under=known_under or plan_hash(story.federation.plan),
    )


def refusal(
    story: AuditedRun,
    *,
    known: Mark | None = None,
    known_under: PlanHash | None = None,
    plan: Plan | None = None,
) -> CloisterError:
    """Returns why the log is not opened; it must be left as it is."""
    before = story.path.read_bytes()
    with pytest.raises(CloisterError) as caught:
        reopened(story, known=known, known_under=known_under, plan=plan)
    assert story.path.read_bytes() == before
    AuditFile.open(story.path).close()  # nobody holds it
    return caught.value


def appended(story: AuditedRun, signer: Node, *entries: bytes) -> None:
    """Has somebody else's key go on with the log."""
    with AuditFile.open(story.path) as file:
        for entry in entries:
            file.append(entry, at_ms=0, signer=ServerSigner(signer.identity))


def test_the_next_server_goes_on_with_the_log(story: AuditedRun) -> None:
    mark, length = story.mark(), len(story.links())
    story.begin(epoch=2, completed=2, known=mark)
    story.admit_all(epoch=2)
    story.train(3)
    story.log.close()
    story.verify()
    introduced = story.entries()[length]
    # What the first one wrote of collateral is not written again.
    assert isinstance(introduced, ServerIntroduced)
    assert (introduced.restart, introduced.completed) == (True, 2)
    assert introduced.warrant.terms.epoch == 2
    rounds = [it.round for it in story.entries() if isinstance(it, RoundCompleted)]
    assert rounds == [1, 2, 3]
    story.begin(epoch=3, completed=3, known=story.mark())
    story.log.close()


def test_a_server_whose_clock_is_behind_goes_by_the_logs_time(
    story: AuditedRun,
) -> None:
    last, known = story.links()[-1].at_ms // 1000, story.mark()
    story.clock.forward(timedelta(minutes=-9))
    node = story.federation.node("aggregator", clock=story.clock, epoch=2)
    with open_audit(
        story.path,
        node=node,
        consents=(),
        plan_text=text_of(node.plan),
        known=known,
        known_under=node.plan_hash,
    ):
        assert int(node.clock().timestamp()) == last


def test_a_server_does_not_go_on_from_a_time_that_is_far_ahead(
    story: AuditedRun,
) -> None:
    known = story.mark()
    story.clock.forward(timedelta(minutes=-11))
    # Its records would be dated by the former server's clock, and judged by that.
    assert refusal(story, known=known).code == "clock-ahead"


def test_a_server_that_goes_on_knows_who_was_admitted_before(
    story: AuditedRun, federation: Federation
) -> None:
    with reopened(story, known=story.mark()) as log:
        newest = log.newest
    assert {who: it.number for who, it in newest.items()} == {
        ("server", "aggregator"): 1,
        ("worker", "alice"): 1,
        ("worker", "bob"): 1,
    }
    other = story.path.with_name("other.jsonl")
    node = federation.node("aggregator")
    text = text_of(node.plan)
    with open_audit(
        other, node=node, consents=(), plan_text=text, known=None, known_under=None
    ) as fresh:
        assert fresh.newest == {}


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_server_that_is_not_newer_than_the_last_is_refused(
    story: AuditedRun, epoch: int
) -> None:
    """Its custodian's database was put back; no auditor would take the log then."""
    story.begin(epoch=2, completed=2)
    story.log.close()
    before = story.path.read_bytes()
    node = story.federation.node("aggregator", clock=story.clock, epoch=epoch)
    with pytest.raises(VerificationError) as caught:
        open_audit(
            story.path,
            node=node,
            consents=(),
            plan_text=text_of(node.plan),
            known=None,
            known_under=None,
        )
    assert caught.value.code == "epoch-old"
    assert "more than 2" in caught.value.expected
    assert story.path.read_bytes() == before


def test_any_head_of_the_log_may_be_the_one_that_the_party_knows(
    story: AuditedRun,
) -> None:
    newest = story.mark()
    for link in story.links():
        head = bytes.fromhex(link.head)
        reopened(story, known=msgspec.structs.replace(newest, audit_head=head)).close()
    reopened(story, known=msgspec.structs.replace(newest, audit_head=None)).close()


def test_a_log_that_was_cut_behind_what_the_party_knows_is_refused(
    story: AuditedRun,
) -> None:
    known, links = story.mark(), story.links()
    for length in range(len(links)):
        story.path.write_bytes(lines_of(*links[:length]))
        error = refusal(story, known=known)
        assert isinstance(error, VerificationError)
        assert error.code == "audit-cut"
        assert links[-1].head in error.expected
        assert "cloister custodian rewind" in error.remedy
        # Cut is no different from broken in the middle of a record.
        story.path.write_bytes(lines_of(*links[: length + 1])[:-10])
        with pytest.raises(VerificationError) as caught:
            reopened(story, known=known)
        assert caught.value.code == "audit-cut"


def test_a_log_that_is_gone_is_refused_where_the_party_knows_of_one(
    story: AuditedRun,
) -> None:
    known = story.mark()
    story.path.unlink()
    with pytest.raises(VerificationError) as caught:
        reopened(story, known=known)
    assert caught.value.code == "audit-cut"


def test_a_record_of_anybody_else_is_refused(
    story: AuditedRun, federation: Federation
) -> None:
    stranger = federation.node("aggregator", epoch=9)
    appended(story, stranger, story.links()[-1].entry)
    error = refusal(story)
    assert isinstance(error, VerificationError)
    assert error.code == "audit-foreign"


def test_an_introduction_without_a_warrant_of_the_servers_party_is_refused(
    story: AuditedRun, federation: Federation
) -> None:
    introduced = story.entries()[2]
    assert isinstance(introduced, ServerIntroduced)
    worker = federation.node("alice")
    entry = msgspec.structs.replace(introduced, warrant=worker.warrant.current)
    appended(story, worker, encode_entry(entry))
    error = refusal(story)
    assert isinstance(error, VerificationError)
    assert error.code == "warrant-signature"


def test_a_signature_that_was_changed_is_refused(story: AuditedRun) -> None:
    links = story.links()
    for number, link in enumerate(links):
        envelope = link.envelope
        for changed in (
            replace(envelope, signature=links[number - 1].envelope.signature),
            replace(envelope, keyid="0" * 64),
        ):
            story.path.write_bytes(
                lines_of(
                    *links[:number],
                    replace(link, envelope=changed),
                    *links[number + 1 :],
                )
            )
            error = refusal(story)
            assert isinstance(error, VerificationError)
            assert error.code in {"audit-signature", "audit-foreign"}


def test_another_runs_log_is_refused(story: AuditedRun) -> None:
    plan = story.federation.plan
    other = msgspec.structs.replace(
        plan, plan=msgspec.structs.replace(plan.plan, run="b")
    )
    assert refusal(story, plan=other).code == "audit-foreign"


def test_a_log_of_another_plan_of_the_run_is_refused(story: AuditedRun) -> None:
    plan = story.federation.plan
    other = msgspec.structs.replace(
        plan, training=msgspec.structs.replace(plan.training, seed=99)
    )
    error = refusal(story, plan=other)
    assert error.code == "audit-foreign"
    assert error.expected == format_digest(plan_hash(other))


def test_a_log_that_begins_in_the_middle_is_refused(
    story: AuditedRun, federation: Federation
) -> None:
    node = federation.node("aggregator")
    link = next_link(
        None,
        entry=story.links()[-1].entry,
        at_ms=0,
        signer=ServerSigner(node.identity),
    )
    story.path.write_bytes(lines_of(link))
    assert refusal(story).code == "audit-foreign"


def test_text_of_another_plan_is_the_callers_mistake(
    server: Node, tmp_path: Path
) -> None:
    training = msgspec.structs.replace(server.plan.training, seed=99)
    other = msgspec.structs.replace(server.plan, training=training)
    with pytest.raises(ConfigError) as caught:
        open_audit(
            tmp_path / "audit.jsonl",
            node=server,
            consents=(),
            plan_text=text_of(other),
            known=None,
            known_under=None,
        )
    assert caught.value.code == "plan-differs"
    assert list(tmp_path.iterdir()) == []


def test_two_servers_at_once_do_not_write_to_one_log(
    server: Node, tmp_path: Path
) -> None:
    with open_log_of(server, tmp_path), pytest.raises(StorageError) as caught:
        open_log_of(server, tmp_path)
    assert caught.value.code == "audit-busy"


# Ends that nobody was told of


def test_what_a_server_wrote_that_died_before_its_introduction_is_dropped(
    story: AuditedRun, federation: Federation
) -> None:
    known, before = story.mark(), story.path.read_bytes()
    dead = federation.node("aggregator", epoch=2)
    appended(story, dead, encode_entry(ORPHAN), encode_entry(ORPHAN))
    more = len(story.path.read_bytes()) - len(before)
    with reopened(story, known=known) as log:
        assert log.dropped_bytes == more
        assert story.path.read_bytes() == before
    story.begin(epoch=3, completed=2, known=known)
    story.log.close()
    story.verify()


@pytest.mark.parametrize("records", [1, 2])
def test_a_first_server_that_died_before_its_introduction_leaves_nothing(
    story: AuditedRun, records: int
) -> None:
    story.path.write_bytes(lines_of(*story.links()[:records]))
    with reopened(story) as log:
        assert log.length == 0
        assert log.dropped_bytes > 0
    story.begin(epoch=2)
    story.log.close()
    opened = story.entries()
    assert len(opened) == 3
    assert isinstance(opened[2], ServerIntroduced)
    assert not opened[2].restart


def test_an_incomplete_last_line_is_dropped(story: AuditedRun) -> None:
    known, before = story.mark(), story.path.read_bytes()
    for length in (1, 30):
        story.path.write_bytes(before + before[:length])
        with reopened(story, known=known) as log:
            assert log.dropped_bytes == length
        assert story.path.read_bytes() == before


# Amended plans


def amended(story: AuditedRun, *, completed: int = 2) -> Plan:
    plan = story.federation.plan
    before = Predecessor(
        plan=format_digest(plan_hash(plan)),
        state=format_digest(state_after(completed)),
        round=completed,
    )
    return msgspec.structs.replace(plan, predecessor=before)


def test_the_log_of_an_amended_plans_predecessor_is_set_aside_and_kept(
    story: AuditedRun,
) -> None:
    known, before = story.mark(), story.path.read_bytes()
    plan = amended(story)
    with reopened(story, known=known, plan=plan) as log:
        assert (log.length, log.head.hex()) == (0, FIRST)
    digits = plan_hash(story.federation.plan).hex()[:16]
    assert story.path.with_name(f"audit.{digits}.jsonl").read_bytes() == before
    # Killed before its first mark, the server finds what it left.
    reopened(story, known=known, plan=plan).close()
    # A mark of its own, of the very same round, is of its own log, which lacks it.
    own = plan_hash(plan)
    error = refusal(story, known=known, known_under=own, plan=plan)
    assert error.code == "audit-cut"


def test_a_predecessors_log_does_not_take_the_place_of_an_amended_plans_own(
    story: AuditedRun,
) -> None:
    plan = amended(story)
    later = msgspec.structs.replace(story.mark(), audit_head=bytes(32))
    error = refusal(story, known=later, known_under=plan_hash(plan), plan=plan)
    assert error.code == "audit-cut"


def test_a_predecessors_log_that_was_cut_is_not_set_aside(story: AuditedRun) -> None:
    known, links = story.mark(), story.links()
    story.path.write_bytes(lines_of(*links[:-1]))
    assert refusal(story, known=known, plan=amended(story)).code == "audit-cut"


def test_no_log_takes_the_place_of_one_that_was_set_aside(story: AuditedRun) -> None:
    known, plan = story.mark(), amended(story)
    digits = plan_hash(story.federation.plan).hex()[:16]
    aside = story.path.with_name(f"audit.{digits}.jsonl")
    aside.write_bytes(b"kept")
    assert refusal(story, known=known, plan=plan).code == "audit-foreign"
    assert aside.read_bytes() == b"kept"


def test_a_link_in_the_way_of_a_log_that_is_set_aside_is_left_alone(
    story: AuditedRun,
) -> None:
    known, plan, before = story.mark(), amended(story), story.path.read_bytes()
    digits = plan_hash(story.federation.plan).hex()[:16]
    aside = story.path.with_name(f"audit.{digits}.jsonl")
    aside.symlink_to("nowhere")
    error = refusal(story, known=known, plan=plan)
    assert (error.code, error.remedy != "") == ("audit-foreign", True)
    assert aside.is_symlink()
    assert story.path.read_bytes() == before
