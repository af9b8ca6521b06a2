from __future__ import annotations

import contextlib
import json
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cbor2
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from tests.support.plan_tree import WORKERS, plan_tree, put, toml_of

from cloister.errors import (
    CloisterError,
    ConfigError,
    StorageError,
    VerificationError,
)
from cloister.plan.consent import (
    FUTURE_TOLERANCE,
    MAX_CONSENT_BYTES,
    Consent,
    check_consents,
    consents_directory,
    format_consent,
    parse_consent,
    read_consent,
    sign_consent,
    verify_consent,
    verify_consents,
    write_consent,
)
from cloister.plan.keys import format_party_key
from cloister.plan.plan import Plan, parse_plan, plan_hash

NAMES = ("aggregator", *WORKERS)
KEYS = {
    name: Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
    for number, name in enumerate(NAMES, 1)
}
TREE = plan_tree(keys={name: format_party_key(key) for name, key in KEYS.items()})
PLAN = parse_plan(toml_of(TREE))
START = datetime(2026, 11, 20, 12, tzinfo=UTC)
SIGNED = sign_consent(PLAN, party="alice", key=KEYS["alice"], at=START)
WRITTEN = format_consent(SIGNED)


def amended() -> Plan:
    tree = msgspec.json.decode(msgspec.json.encode(TREE))
    return parse_plan(toml_of(put(tree, ("training", "seed"), 8)))


def verify(consent: Consent, *, party: str = "alice", at: datetime = START) -> Consent:
    return verify_consent(consent, plan=PLAN, party=party, at=at)


def refusal(
    consent: Consent, *, party: str = "alice", at: datetime = START
) -> VerificationError:
    with pytest.raises(VerificationError) as caught:
        verify(consent, party=party, at=at)
    return caught.value


def malformed(text: bytes) -> StorageError:
    with pytest.raises(StorageError) as caught:
        parse_consent(text)
    assert caught.value.code == "consent-malformed"
    return caught.value


def sign_all(plan: Plan, plan_path: Path, *, but: tuple[str, ...] = ()) -> Path:
    """Writes everybody's consent, an hour apart; returns the directory."""
    directory = consents_directory(plan_path, plan)
    for hours, name in enumerate(NAMES):
        if name not in but:
            at = START + timedelta(hours=hours)
            consent = sign_consent(plan, party=name, key=KEYS[name], at=at)
            write_consent(consent, directory)
    return directory


@pytest.mark.parametrize("party", NAMES)
def test_every_party_can_agree_to_the_plan(party: str) -> None:
    consent = sign_consent(PLAN, party=party, key=KEYS[party], at=START)
    assert verify(consent, party=party) == consent
    assert consent.run_id == "blobs/a"
    assert consent.plan_hash == f"sha256:{plan_hash(PLAN).hex()}"
    assert consent.signed_at == START.timestamp()


def test_what_is_signed_is_what_the_specification_says() -> None:
    signed = cbor2.dumps(
        [
            "cloister/consent/1",
            "blobs/a",
            plan_hash(PLAN),
            "alice",
            int(START.timestamp()),
        ],
        canonical=True,
    )
    KEYS["alice"].public_key().verify(bytes.fromhex(SIGNED.signature), signed)


def test_a_party_signs_with_the_key_of_the_plan_only() -> None:
    with pytest.raises(ConfigError) as caught:
        sign_consent(PLAN, party="alice", key=KEYS["bob"], at=START)
    assert caught.value.code == "consent-key"
    assert caught.value.expected == format_party_key(KEYS["alice"])
    assert caught.value.got == format_party_key(KEYS["bob"])


def test_a_stranger_to_the_plan_signs_nothing() -> None:
    with pytest.raises(ConfigError) as caught:
        sign_consent(PLAN, party="mallory", key=KEYS["alice"], at=START)
    assert caught.value.code == "party-unknown"


def test_a_consent_to_another_plan_is_refused() -> None:
    other = sign_consent(amended(), party="alice", key=KEYS["alice"], at=START)
    error = refusal(other)
    assert error.code == "consent-foreign"
    assert "another plan" in error.what
    assert error.expected == f"sha256:{plan_hash(PLAN).hex()}"


def test_a_consent_to_another_run_is_refused() -> None:
    error = refusal(msgspec.structs.replace(SIGNED, run_id="blobs/b"))
    assert (error.code, error.got) == ("consent-foreign", "blobs/b")


def test_one_partys_consent_is_not_anothers() -> None:
    error = refusal(SIGNED, party="bob")
    assert error.code == "consent-foreign"
    assert "another party" in error.what
    renamed = msgspec.structs.replace(SIGNED, party="bob")
    assert refusal(renamed, party="bob").code == "consent-signature"


def test_a_consent_is_asked_of_parties_of_the_plan_only() -> None:
    with pytest.raises(ConfigError) as caught:
        verify(SIGNED, party="mallory")
    assert caught.value.code == "party-unknown"


def test_a_signing_time_cannot_be_changed_afterwards() -> None:
    for difference in (-1, 1, 3600):
        changed = msgspec.structs.replace(
            SIGNED, signed_at=SIGNED.signed_at + difference
        )
        assert refusal(changed, at=START + timedelta(days=1)).code == (
            "consent-signature"
        )


def test_a_consent_from_the_future_is_refused_beyond_the_tolerance() -> None:
    verify(SIGNED, at=START - FUTURE_TOLERANCE)
    early = START - FUTURE_TOLERANCE - timedelta(seconds=1)
    assert refusal(SIGNED, at=early).code == "consent-future"


def test_a_consent_does_not_age() -> None:
    assert verify(SIGNED, at=START + timedelta(days=36_500)) == SIGNED


def test_a_consent_that_was_never_a_file_is_held_to_the_same_form() -> None:
    for changes in (
        {"format": 2},
        {"signature": "ab"},
        {"signature": SIGNED.signature.upper()},
        {"signed_at": -1},
        {"plan_hash": SIGNED.plan_hash + "\n"},
    ):
        with pytest.raises(StorageError) as caught:
            verify(msgspec.structs.replace(SIGNED, **changes))
        assert caught.value.code == "consent-malformed"


def test_a_consent_reads_as_written() -> None:
    assert parse_consent(WRITTEN) == SIGNED
    assert len(WRITTEN) < MAX_CONSENT_BYTES
    assert list(json.loads(WRITTEN)) == [
        "format",
        "run_id",
        "plan_hash",
        "party",
        "signed_at",
        "signature",
    ]


def test_every_flipped_bit_is_refused_or_changes_nothing() -> None:
    held = 0
    for bit in range(8 * len(WRITTEN)):
        damaged = bytearray(WRITTEN)
        damaged[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(StorageError, VerificationError):
            assert verify(parse_consent(bytes(damaged))) == SIGNED
            held += 1
    # One kind of white space became another, and nothing else.
    assert held <= WRITTEN.count(b" ") + WRITTEN.count(b"\n")


def test_every_truncation_is_refused() -> None:
    # The file ends in a line break, which says nothing.
    for length in range(len(WRITTEN) - 1):
        malformed(WRITTEN[:length])


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_storage_error(text: bytes) -> None:
    malformed(text)


@given(
    st.integers(0, len(WRITTEN)), st.integers(0, len(WRITTEN)), st.binary(max_size=20)
)
def test_no_patched_consent_holds_unless_it_says_the_same(
    start: int, end: int, patch: bytes
) -> None:
    patched = WRITTEN[:start] + patch + WRITTEN[end:]
    with contextlib.suppress(StorageError, VerificationError):
        assert verify(parse_consent(patched)) == SIGNED


@given(st.data())
def test_no_other_values_hold(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["run_id", "plan_hash", "party", "signature"]))
    value = data.draw(st.text(max_size=200))
    changed = json.loads(WRITTEN) | {name: value}
    with pytest.raises((StorageError, VerificationError)):
        verify(parse_consent(json.dumps(changed).encode()))


@pytest.mark.parametrize("name", Consent.__struct_fields__)
def test_every_key_of_the_file_is_required(name: str) -> None:
    tree = json.loads(WRITTEN)
    del tree[name]
    assert f"`{name}`" in malformed(json.dumps(tree).encode()).got


def test_an_unknown_key_is_refused() -> None:
    malformed(json.dumps(json.loads(WRITTEN) | {"for": "everything"}).encode())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", 0),
        ("format", 2),
        ("format", "1"),
        ("format", True),
        ("run_id", "blobs"),
        ("run_id", "blobs/a\n"),
        ("plan_hash", 64 * "a"),
        ("party", "Alice"),
        ("party", "../alice"),
        ("signed_at", "1"),
        ("signed_at", 1.5),
        ("signed_at", -1),
        ("signed_at", 2**53 + 1),
        ("signed_at", 10**400),
        ("signature", 127 * "a"),
        ("signature", 128 * "A"),
        ("signature", 128 * "a" + "\n"),
        ("signature", None),
    ],
)
def test_a_value_that_does_not_fit_is_refused(name: str, value: object) -> None:
    malformed(json.dumps(json.loads(WRITTEN) | {name: value}).encode())


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[" * 4000,
        b"\xef\xbb\xbf" + WRITTEN,
        WRITTEN + WRITTEN,
        WRITTEN.replace(b"alice", b"al\xffce"),
        WRITTEN.replace(b"alice", b"al\\ud800e"),
        WRITTEN.replace(b"alice", b"alice\\u0000"),
    ],
)
def test_what_is_no_consent_is_refused(text: bytes) -> None:
    malformed(text)


def test_an_oversized_consent_is_refused_before_it_is_parsed() -> None:
    padding = b" " * (MAX_CONSENT_BYTES - len(WRITTEN))
    assert parse_consent(WRITTEN + padding) == SIGNED
    assert malformed(WRITTEN + padding + b" ").got == "more"


def test_all_consents_together_are_everybodys_agreement(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    sign_all(PLAN, path)
    consents = check_consents(PLAN, path, at=START + timedelta(hours=3))
    assert tuple(consents.by_party) == NAMES
    assert all(name == it.party for name, it in consents.by_party.items())
    assert consents.newest == START + timedelta(hours=2)
    with pytest.raises(FrozenInstanceError):
        consents.newest = START  # type: ignore[misc]  # what the test is about


def test_consents_are_verified_together_as_one_by_one() -> None:
    consents = [
        sign_consent(PLAN, party=name, key=KEYS[name], at=START) for name in NAMES
    ]
    assert verify_consents(consents, plan=PLAN, at=START) == tuple(consents)
    wrong = msgspec.structs.replace(consents[1], signature=consents[0].signature)
    early = START - timedelta(minutes=11)
    for others, plan, at, code in (
        ([consents[0], wrong, consents[2]], PLAN, START, "consent-signature"),
        ([consents[1], consents[0], consents[2]], PLAN, START, "consent-foreign"),
        (consents, amended(), START, "consent-foreign"),
        (consents, PLAN, early, "consent-future"),
    ):
        with pytest.raises(VerificationError) as caught:
            verify_consents(others, plan=plan, at=at)
        assert caught.value.code == code
    for others in (consents[:2], [*consents, consents[2]]):
        with pytest.raises(ValueError, match="argument"):
            verify_consents(others, plan=PLAN, at=START)


@pytest.mark.parametrize("but", [("aggregator",), ("alice", "bob"), NAMES])
def test_who_has_not_signed_is_named(tmp_path: Path, but: tuple[str, ...]) -> None:
    path = tmp_path / "plan.toml"
    sign_all(PLAN, path, but=but)
    with pytest.raises(ConfigError) as caught:
        check_consents(PLAN, path, at=START + timedelta(hours=3))
    assert caught.value.code == "consent-missing"
    assert caught.value.what == f"the plan is not signed by {', '.join(but)}"
    assert "cloister plan sign" in caught.value.remedy


def test_an_amended_plan_is_not_signed_by_the_consents_before(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    before = sign_all(PLAN, path)
    after = consents_directory(path, amended())
    assert before.parent == after.parent == tmp_path / "consents"
    assert before.name == plan_hash(PLAN).hex()[:16] != after.name
    with pytest.raises(ConfigError) as missing:
        check_consents(amended(), path, at=START)
    assert missing.value.code == "consent-missing"
    before.rename(after)
    with pytest.raises(VerificationError) as foreign:
        check_consents(amended(), path, at=START)
    assert foreign.value.code == "consent-foreign"


def test_a_consent_under_anothers_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    directory = sign_all(PLAN, path, but=("bob",))
    (directory / "bob.json").write_bytes((directory / "alice.json").read_bytes())
    with pytest.raises(VerificationError) as caught:
        check_consents(PLAN, path, at=START + timedelta(hours=3))
    assert caught.value.code == "consent-foreign"


def test_one_consent_from_the_future_spoils_all(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    sign_all(PLAN, path)
    with pytest.raises(VerificationError) as caught:
        check_consents(PLAN, path, at=START + timedelta(hours=1))
    assert caught.value.code == "consent-future"
    assert "'bob'" in caught.value.what


def test_a_stray_file_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    directory = sign_all(PLAN, path)
    (directory / "mallory.json").write_bytes(b"\xff")
    (directory / ".consent-left-over").write_bytes(b"{")
    assert len(check_consents(PLAN, path, at=START + timedelta(hours=3)).by_party) == 3


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    damaged = sign_all(PLAN, path) / "alice.json"
    damaged.write_bytes(WRITTEN[:100])
    with pytest.raises(StorageError) as caught:
        check_consents(PLAN, path, at=START + timedelta(hours=3))
    assert caught.value.code == "consent-malformed"
    assert str(damaged) in caught.value.what


def test_a_directory_is_no_consent(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    directory = sign_all(PLAN, path, but=("alice",))
    (directory / "alice.json").mkdir()
    with pytest.raises(StorageError) as caught:
        check_consents(PLAN, path, at=START + timedelta(hours=3))
    assert caught.value.code == "consent-unreadable"


def test_a_missing_file_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        read_consent(tmp_path / "alice.json")
    assert caught.value.code == "consent-unreadable"


def test_a_consent_is_written_whole_and_replaces_the_one_before(tmp_path: Path) -> None:
    directory = tmp_path / "consents" / "here"
    path = write_consent(SIGNED, directory)
    later = sign_consent(
        PLAN, party="alice", key=KEYS["alice"], at=START + timedelta(days=1)
    )
    assert write_consent(later, directory) == path == directory / "alice.json"
    assert read_consent(path) == later
    assert list(directory.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "here" / "alice.json").mkdir(parents=True)
    for directory in (tmp_path / "file", tmp_path / "here"):
        with pytest.raises(StorageError) as caught:
            write_consent(SIGNED, directory)
        assert caught.value.code == "consent-unwritable"
    assert [it.name for it in (tmp_path / "here").iterdir()] == ["alice.json"]


def test_every_refusal_is_a_single_line() -> None:
    errors: list[CloisterError] = [refusal(SIGNED, party="bob"), malformed(b"\n{\n")]
    assert not any("\n" in str(error) for error in errors)
