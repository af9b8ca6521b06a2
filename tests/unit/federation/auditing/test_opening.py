from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest
from tests.support.federation_in_memory import Federation, HandClock
from tests.support.made_audit import audited_federation, consents_of, text_of
from tests.support.refusals import code_of

from cloister.errors import CloisterError, ConfigError, StorageError
from cloister.federation.audit_records import RunOpened
from cloister.federation.auditing.opening import Opening, verify_opening
from cloister.federation.auditing.report import Anchors
from cloister.plan.keys import format_party_key
from cloister.plan.plan import PlanHash, plan_hash

CLOCK = HandClock()


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return audited_federation(tmp_path_factory.mktemp("federation"))


@pytest.fixture(scope="module")
def opened(federation: Federation) -> RunOpened:
    return RunOpened(
        run_id=federation.plan.run_id,
        plan_hash=plan_hash(federation.plan),
        plan=text_of(federation.plan),
        consents=consents_of(federation, CLOCK),
    )


def verify(record: RunOpened, anchors: Anchors | None = None) -> Opening:
    return verify_opening(record, anchors=anchors or Anchors(), at=CLOCK())


def changed(record: RunOpened, **values: object) -> RunOpened:
    found: RunOpened = msgspec.structs.replace(record, **values)
    return found


def test_an_opening_fixes_plan_and_consents(
    federation: Federation, opened: RunOpened
) -> None:
    opening = verify(opened)
    assert opening.plan == federation.plan
    assert opening.plan_hash == plan_hash(federation.plan)
    assert opening.consented.at == CLOCK()
    assert opening.keys_compared == ()


def test_a_plan_that_does_not_parse_is_refused(opened: RunOpened) -> None:
    with pytest.raises(ConfigError):
        verify(changed(opened, plan=b"[plan]"))


def test_another_hash_and_another_run_are_refused(opened: RunOpened) -> None:
    assert code_of(verify, changed(opened, plan_hash=bytes(32))) == "audit-plan"
    assert code_of(verify, changed(opened, run_id="blobs/b")) == "audit-plan"


def test_everybody_must_have_consented_in_the_plans_order(opened: RunOpened) -> None:
    first, second, third = opened.consents
    for few_or_many in ((first, second), (first, second, third, third), ()):
        record = changed(opened, consents=few_or_many)
        assert code_of(verify, record) == "audit-consents"
    for misplaced in ((second, first, third), (first, first, third)):
        record = changed(opened, consents=misplaced)
        assert code_of(verify, record) == "consent-foreign"


def test_a_consent_that_another_key_signed_is_refused(opened: RunOpened) -> None:
    first, *others = opened.consents
    at = first.index(b'"signature": "') + 14
    other = b"0" if first[at : at + 1] != b"0" else b"1"
    forged = first[:at] + other + first[at + 1 :]
    record = changed(opened, consents=(forged, *others))
    assert code_of(verify, record) == "consent-signature"


def test_a_consent_that_is_none_is_refused(opened: RunOpened) -> None:
    with pytest.raises(StorageError):
        verify(changed(opened, consents=(b"yes", *opened.consents[1:])))


def test_consents_of_the_future_are_refused(opened: RunOpened) -> None:
    before = CLOCK() - timedelta(hours=1)
    with pytest.raises(CloisterError) as caught:
        verify_opening(opened, anchors=Anchors(), at=before)
    assert caught.value.code == "consent-future"


def test_what_the_auditor_knows_must_agree(
    federation: Federation, opened: RunOpened
) -> None:
    keys = {name: format_party_key(key) for name, key in federation.keys.items()}
    known = Anchors(plan_hash=plan_hash(federation.plan), party_keys=keys)
    assert verify(opened, known).keys_compared == ("aggregator", "alice", "bob")
    bobs = Anchors(party_keys={"bob": keys["bob"]})
    assert verify(opened, bobs).keys_compared == ("bob",)
    for wrong in (
        Anchors(plan_hash=PlanHash(bytes(32))),
        Anchors(party_keys={"bob": keys["alice"]}),
        Anchors(party_keys={"carol": keys["alice"]}),
        Anchors(plan_hash=known.plan_hash, party_keys={"bob": keys["alice"]}),
    ):
        assert code_of(verify, opened, wrong) == "audit-anchor"


def test_an_anchor_that_is_no_key_is_the_auditors_mistake() -> None:
    with pytest.raises(ConfigError) as caught:
        Anchors(party_keys={"alice": "ed25519:00"})
    assert caught.value.code == "party-key-invalid"


def test_a_file_of_the_plan_may_read_in_another_way(
    opened: RunOpened,
) -> None:
    verify(changed(opened, plan=b"# a comment\n" + opened.plan))
