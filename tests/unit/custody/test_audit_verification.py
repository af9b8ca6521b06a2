from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.custody_audit import PARTY, Entry, Story, remade, verify_log
from tests.support.federation_in_memory import START, make_federation
from tests.support.keyrings import new_safe
from tests.support.plan_tree import Tree, by_identity, hold_shares, put
from tests.support.refusals import code_of

from cloister.attestation.policy import Verdict
from cloister.custody.register import Register
from cloister.errors import CloisterError, ConfigError, StorageError, VerificationError
from cloister.plan.keys import format_party_key
from cloister.plan.plan import plan_hash
from cloister.ratls.epochs import key_digest
from cloister.ratls.identity import new_identity
from cloister.ratls.proofs import Identified
from cloister.storage.keys import key_id, new_key

SHARE = "sha256:2" + 63 * "b"  # alice's, as `hold_shares` has it
OTHER_SHARE = "sha256:1" + 63 * "b"
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """All that can happen at a custodian, once."""
    data = new_key()
    federation = make_federation(
        tmp_path_factory.mktemp("shares"),
        change=lambda tree: with_data_key(
            hold_shares(tree, "aggregator", "alice"), key_id("data", data)
        ),
    )
    safe = new_safe(tmp_path_factory.mktemp("custodian"))
    register = Register.open(safe.database)
    keys = safe.keys(register)
    story = Story(federation=federation, register=register)
    story.consent()
    first = keys.add("data", label="scans", at=START, secret=data)
    story.meet(PARTY)
    story.release(PARTY, first, SHARE)
    story.later(timedelta(minutes=5))
    story.meet("bob", epoch=4)
    story.release("bob", SHARE)
    story.refuse("bob")
    story.renew()
    keys.rotate(first, at=story.at)
    keys.revoke(first, at=story.at)
    story.meet(PARTY)
    story.release(PARTY, SHARE)
    register.withdraw(plan_hash(federation.plan), at=story.at)
    return story


def with_data_key(tree: Tree, name: str) -> Tree:
    """Returns the tree with a name for alice's data key."""
    return put(tree, ("party", 1, "data_key"), name)


def refusal(act: Callable[[], object]) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        act()
    return caught.value


def code_after(story: Story, change: Callable[[list[Entry]], None]) -> str:
    """Returns why a log is refused that its own party changed and signed anew."""
    error = refusal(lambda: story.verify_remade(change))
    assert isinstance(error, VerificationError)
    assert error.what.startswith("record ")
    return error.code


def first(entries: list[Entry], kind: str, *, number: int = 0) -> Entry:
    return [entry for entry in entries if entry["kind"] == kind][number]


def test_a_custodians_log_tells_what_it_decided(story: Story) -> None:
    report = story.verify()
    federation, key = story.federation, format_party_key(story.key)
    assert (report.party, report.key, report.key_compared) == (PARTY, key, True)
    assert report.simulated
    assert report.records == len(list(story.register.records()))
    assert (report.began, report.ended) == (START, story.at)
    (consent,) = report.consents
    assert (consent.plan, consent.state) == (federation.plan, "withdrawn")
    assert [(it.terms.party, it.terms.epoch, it.own) for it in report.nodes] == [
        (PARTY, 1, True),
        ("bob", 4, False),
        (PARTY, 2, True),
    ]
    assert all(isinstance(it.standing, Verdict) for it in report.nodes)
    assert [(it.release.party, len(it.release.key_ids)) for it in report.releases] == [
        (PARTY, 2),
        ("bob", 1),
        (PARTY, 1),
    ]
    assert [it.state for it in report.keys] == ["revoked", "active"]
    assert (report.refusals, report.rewound) == (1, ())


def test_who_brings_no_key_is_told_which_one_signed(story: Story) -> None:
    report = verify_log(story.log(), key=None)
    assert not report.key_compared
    assert report.key == format_party_key(story.key)


def test_another_exports_the_same_bytes_and_a_later_one_goes_on(story: Story) -> None:
    log = story.log()
    assert story.log() == log
    assert log.count(b"\n") == story.verify().records


def test_a_log_signed_by_another_is_refused(story: Story) -> None:
    other = Ed25519PrivateKey.generate()
    forged = remade(story.log(), other, lambda _: None)
    assert refusal(lambda: story.verify(forged)).code == "audit-signature"
    # Not even by itself: its own plan names another key of the party.
    assert refusal(lambda: verify_log(forged, key=None)).code == "audit-consent"


def test_one_record_signed_by_another_is_refused(story: Story) -> None:
    log, other = story.log(), Ed25519PrivateKey.generate()
    forged = remade(log, other, lambda _: None)
    ours, theirs = log.splitlines(keepends=True), forged.splitlines(keepends=True)
    for line in (0, 3, len(ours) - 1):
        mixed = b"".join([*ours[:line], theirs[line], *ours[line + 1 :]])
        error = refusal(partial(verify_log, mixed, key=None))
        assert error.code == "audit-signature"


def test_a_key_that_is_none_is_the_auditors_mistake(story: Story) -> None:
    error = refusal(lambda: verify_log(story.log(), key="ed25519:00"))
    assert isinstance(error, ConfigError)


def test_an_empty_log_is_none() -> None:
    assert refusal(lambda: verify_log(b"", key=None)).code == "audit-empty"


def test_a_log_that_was_cut_between_records_is_a_shorter_one(story: Story) -> None:
    # Said plainly: a head that the auditor has from elsewhere is what shows this.
    lines = story.log().splitlines(keepends=True)
    for length in range(1, len(lines)):
        report = story.verify(b"".join(lines[:length]))
        assert report.records == length


@settings(max_examples=200)
@given(data=st.data())
def test_any_flipped_bit_or_cut_line_is_refused(
    story: Story, data: st.DataObject
) -> None:
    log = story.log()
    if data.draw(st.booleans()):
        changed = bytearray(log)
        bit = data.draw(st.integers(0, 8 * len(log) - 1))
        changed[bit // 8] ^= 1 << bit % 8
        got = bytes(changed)
    else:
        got = log[: data.draw(st.integers(0, len(log) - 1))]
        if got.endswith(b"\n"):
            got = got[:-1]
    assert refusal(lambda: story.verify(got)).code.startswith("audit-")


def test_records_removed_swapped_or_doubled_are_refused(story: Story) -> None:
    lines = story.log().splitlines(keepends=True)
    for at in range(len(lines) - 1):
        for changed in (
            [*lines[:at], *lines[at + 1 :]],
            [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]],
            [*lines[: at + 1], *lines[at:]],
        ):
            error = refusal(partial(story.verify, b"".join(changed)))
            assert isinstance(error, StorageError)


# What the party itself cannot write


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("custodian-opened", "audit-first"),
        ("consent-given", "audit-consent"),
        ("collateral", "audit-collateral"),
        ("warrant-signed", "audit-release"),
        ("warrant-noted", "audit-release"),
        ("key-added", "audit-key"),
    ],
)
def test_a_record_on_which_others_rest_is_missed(
    story: Story, kind: str, code: str
) -> None:
    error = refusal(
        lambda: story.verify_remade(lambda them: them.remove(first(them, kind)))
    )
    assert error.code == code


def test_a_log_is_opened_once(story: Story) -> None:
    assert code_after(story, lambda them: them.append(them[0])) == "audit-first"


def b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def changed(kind: str, *path: str, to: object) -> Callable[[list[Entry]], None]:
    """Returns what changes one value in the first record of a kind."""

    def change(entries: list[Entry]) -> None:
        place: Any = first(entries, kind)
        for step in path[:-1]:
            place = place[step]
        assert place[path[-1]] != to
        place[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (changed("consent-given", "run_id", to="blobs/b"), "audit-consent"),
        (changed("consent-given", "plan_hash", to=b64(bytes(32))), "audit-consent"),
        (changed("consent-given", "supersedes", to=b64(bytes(32))), "audit-consent"),
        (changed("consent-withdrawn", "run_id", to="blobs/b"), "audit-consent"),
        (changed("collateral", "text", to="{}"), "audit-collateral"),
        (changed("warrant-signed", "terms", "epoch", to=2), "audit-epoch"),
        (changed("warrant-signed", "epoch_new", to=False), "audit-epoch"),
        (changed("warrant-signed", "terms", "party", to="bob"), "audit-warrant"),
        (changed("warrant-signed", "terms", "tls_key", to=b64(bytes(91))), "audit-wa"),
        (changed("warrant-signed", "terms", "issued_at", to=2**33), "audit-warrant"),
        (
            changed(
                "warrant-signed", "testimony", "said", "client_nonce", to=b64(b"n" * 32)
            ),
            "report-data",
        ),
        (changed("warrant-signed", "testimony", "collateral", to=None), "testimony-"),
        (changed("warrant-noted", "testimony", "warrant", to=None), "audit-warrant"),
        (
            changed("warrant-noted", "testimony", "warrant", "terms", "epoch", to=5),
            "warrant-signature",
        ),
        (changed("key-released", "epoch", to=2), "audit-release"),
        (changed("key-released", "party", to="bob"), "audit-release"),
        (changed("key-released", "tls_key_sha256", to=64 * "0"), "audit-release"),
        (changed("key-released", "encryption_key", to=b64(bytes(32))), "audit-release"),
        (changed("key-released", "plan_hash", to=b64(bytes(32))), "audit-consent"),
        (changed("key-rotated", "replaces", to="sha256:0"), "audit-key"),
        (changed("key-rotated", "label", to="other"), "audit-key"),
        (changed("key-revoked", "key_id", to="sha256:0"), "audit-key"),
    ],
)
def test_a_record_that_does_not_hold_is_named(
    story: Story, change: Callable[[list[Entry]], None], code: str
) -> None:
    assert code_after(story, change).startswith(code)


def test_the_evidence_of_another_node_is_found_out(story: Story) -> None:
    def swap(entries: list[Entry]) -> None:
        mine = first(entries, "warrant-signed")["testimony"]
        mine["proof"] = first(entries, "warrant-noted")["testimony"]["proof"]

    assert code_after(story, swap) == "report-data"


def test_a_revoked_key_is_released_no_more(story: Story) -> None:
    def release_again(entries: list[Entry]) -> None:
        last = first(entries, "key-released", number=2)
        last["key_ids"] = [first(entries, "key-added")["key_id"]]

    assert code_after(story, release_again) == "audit-release"


@pytest.mark.parametrize("released", [OTHER_SHARE, "sha256:" + 64 * "0"])
def test_a_node_gets_no_key_that_the_plan_does_not_give_it_here(
    story: Story, released: str
) -> None:
    for number, own in ((0, True), (1, False)):

        def give(entries: list[Entry], number: int = number) -> None:
            first(entries, "key-released", number=number)["key_ids"].append(released)

        assert code_after(story, give) == "audit-release", own

    def give_data(entries: list[Entry]) -> None:
        data = first(entries, "key-added")["key_id"]
        first(entries, "key-released", number=1)["key_ids"] = [data]

    # Alice's data key, to bob's node.
    assert code_after(story, give_data) == "audit-release"


def test_a_renewed_node_has_the_keys_that_it_had(story: Story, tmp_path: Path) -> None:
    """One TLS key with two encryption keys: to which of them did keys go?"""
    node = story.federation.node(PARTY)
    with Register.open(new_safe(tmp_path).database) as register:
        own = Story(federation=story.federation, register=register)
        own.consent()
        own.nodes[PARTY] = node
        own.renew()
        keys = replace(node.identity, encryption_key=new_identity().encryption_key)
        own.nodes[PARTY] = replace(node, identity=keys)
        assert code_of(own.renew) == "encryption-key-differs"
        other = own.shown(PARTY)
        own.nodes[PARTY] = node
        own.renew()
        own.verify()

        def renew_as_another(entries: list[Entry]) -> None:
            last = first(entries, "warrant-signed", number=1)
            last["testimony"] = msgspec.to_builtins(other.testimony)

        assert code_after(own, renew_as_another) == "audit-epoch"


def test_a_former_node_gets_nothing_and_does_not_come_back(story: Story) -> None:
    def late(entries: list[Entry]) -> None:
        entries.insert(-1, first(entries, "key-released"))

    assert code_after(story, late) == "audit-release"

    def back(entries: list[Entry]) -> None:
        entries.insert(-1, first(entries, "warrant-signed"))

    assert code_after(story, back) == "audit-epoch"

    def other_party_back(entries: list[Entry]) -> None:
        entries.insert(-1, first(entries, "warrant-noted"))

    assert code_after(story, other_party_back) == "audit-epoch"


@pytest.mark.parametrize("kind", ["warrant-signed", "warrant-noted", "key-released"])
def test_nothing_is_done_after_a_consent_ended(story: Story, kind: str) -> None:
    def after(entries: list[Entry]) -> None:
        entries.append(first(entries, kind, number=-1))

    assert code_after(story, after) == "audit-consent"


@pytest.mark.parametrize(
    "change",
    [
        changed("custodian-opened", "party", to="a party"),
        changed("node-refused", "code", to=65 * "x"),
        changed("key-added", "key_kind", to="other"),
        lambda entries: first(entries, "key-added").update(more=1),
        lambda entries: first(entries, "key-added").update(kind="key-eaten"),
        lambda entries: first(entries, "key-added").pop("label"),
        lambda entries: first(entries, "key-added").update(
            key_id=first(entries, "key-added").pop("key_id")
        ),
    ],
)
def test_a_record_of_another_form_is_refused(
    story: Story, change: Callable[[list[Entry]], None]
) -> None:
    def and_out_of_order(entries: list[Entry]) -> None:
        change(entries)
        entry = first(entries, "consent-given")
        entry["run_id"] = entry.pop("run_id")  # last now: another spelling

    for act in (change, and_out_of_order):
        error = refusal(partial(story.verify_remade, act))
        assert isinstance(error, StorageError)
        assert error.code == "audit-malformed"


def test_a_party_of_identity_is_audited_by_its_signature(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    federation = make_federation(
        tmp_path_factory.mktemp("identity"),
        change=lambda tree: by_identity(tree, PARTY),
    )
    safe = new_safe(tmp_path_factory.mktemp("custodian"))
    with Register.open(safe.database) as register:
        story = Story(federation=federation, register=register)
        story.consent()
        story.meet(PARTY)
        (node,) = story.verify().nodes
        assert isinstance(node.standing, Identified)
        key = story.nodes[PARTY].identity.tls_spki
        assert key_digest(node.terms.tls_key) == key_digest(key)
        proof = changed(
            "warrant-signed", "testimony", "proof", "signature", to=b64(bytes(64))
        )
        assert code_after(story, proof)
