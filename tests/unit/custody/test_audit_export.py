from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.support.registers import (
    KEYS,
    MINUTE,
    PARTY,
    START,
    deposit,
    digest_of,
    grant,
    mark_of,
    paced,
    signed_plan,
    successor_of,
)

from cloister.custody.audit_export import export_audit, head_of_run, sign_head
from cloister.custody.register import Register
from cloister.errors import ConfigError
from cloister.plan.keys import format_party_key
from cloister.ratls.signed_head import HEAD_TYPE, parse_head
from cloister.storage.dsse import parse_envelope

PLAN = signed_plan()
KEY = KEYS[PARTY]


@pytest.fixture
def register(tmp_path: Path) -> Iterator[Register]:
    with Register.create(tmp_path / "custodian.sqlite", party=PARTY) as register:
        yield register


def config_code(error: pytest.ExceptionInfo[ConfigError]) -> str:
    return error.value.code


def test_a_custodian_that_did_nothing_has_nothing_to_show(register: Register) -> None:
    with pytest.raises(ConfigError) as caught:
        list(export_audit(register, key=KEY))
    assert config_code(caught) == "audit-empty"


def test_each_record_is_a_line_that_the_party_signed(register: Register) -> None:
    register.adopt(PLAN.text, PLAN.consent, at=START)
    lines = list(export_audit(register, key=KEY))
    payloads = [row.payload for row in register.records()]
    for line, payload in zip(lines, payloads, strict=True):
        assert line.endswith(b"\n")
        envelope = parse_envelope(line[:-1])
        assert (envelope.payload, envelope.keyid) == (payload, format_party_key(KEY))
        KEY.public_key().verify(envelope.signature, envelope.signed)
    grant(register, PLAN, 1)
    assert list(export_audit(register, key=KEY))[: len(lines)] == lines


def test_others_write_while_a_long_log_is_shown(register: Register) -> None:
    register.adopt(PLAN.text, PLAN.consent, at=START)
    for node in range(1, 71):
        grant(register, PLAN, node, at=paced(register))
    lines = export_audit(register, key=KEY)
    found = [next(lines)]
    grant(register, PLAN, 71, at=paced(register))
    found.extend(lines)
    assert len(found) == 72


def test_a_head_is_the_mark_as_the_party_signs_it(register: Register) -> None:
    register.adopt(PLAN.text, PLAN.consent, at=START)
    terms = grant(register, PLAN, 1)
    mark = msgspec.structs.replace(mark_of(5, epoch=2), audit_head=digest_of("head"))
    deposit(register, PLAN, 1, mark, at=START + MINUTE)
    head = head_of_run(register, "blobs/a")
    assert (head.run_id, head.plan_hash, head.party) == ("blobs/a", PLAN.hash, PARTY)
    assert (head.round, head.state, head.audit_head) == (5, mark.state, mark.audit_head)
    assert head.at == terms.issued_at + 60
    line = sign_head(head, key=KEY)
    envelope = parse_envelope(line[:-1])
    assert (envelope.payload_type, envelope.keyid) == (HEAD_TYPE, format_party_key(KEY))
    KEY.public_key().verify(envelope.signature, envelope.signed)
    assert parse_head(envelope.payload) == head


def test_a_head_is_of_the_plan_whose_server_stated_it(register: Register) -> None:
    """Amended since, the party knows a head of the former plan's log: no fork."""
    register.adopt(PLAN.text, PLAN.consent, at=START)
    grant(register, PLAN, 1)
    mark = msgspec.structs.replace(mark_of(0), audit_head=digest_of("head"))
    deposit(register, PLAN, 1, mark)
    successor = successor_of(PLAN, mark)
    register.adopt(successor.text, successor.consent, at=START)
    grant(register, successor, 2)
    assert head_of_run(register, "blobs/a").plan_hash == PLAN.hash
    # Nor is it the successor's when its node tells it once more.
    deposit(register, successor, 2, mark)
    assert head_of_run(register, "blobs/a").plan_hash == PLAN.hash
    own = msgspec.structs.replace(mark, server_epoch=2, audit_head=digest_of("own"))
    deposit(register, successor, 2, own)
    assert head_of_run(register, "blobs/a").plan_hash == successor.hash


def test_a_run_without_a_mark_or_a_head_has_none(register: Register) -> None:
    register.adopt(PLAN.text, PLAN.consent, at=START)
    grant(register, PLAN, 1)
    with pytest.raises(ConfigError) as caught:
        head_of_run(register, "blobs/a")
    assert config_code(caught) == "mark-missing"
    deposit(register, PLAN, 1, mark_of(5))
    with pytest.raises(ConfigError) as caught:
        head_of_run(register, "blobs/a")
    assert config_code(caught) == "audit-head-missing"
