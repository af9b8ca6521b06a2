from __future__ import annotations

import copy
import hashlib
import traceback

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.storage.keys import KEY_BYTES, KeyKind, Secret, key_id, new_key

CANARY = b"canary-of-thirty-two-bytes-here!"
KINDS: tuple[KeyKind, ...] = ("data", "state-share", "vault")


def test_a_secret_gives_its_bytes_only_when_asked_by_name() -> None:
    assert Secret(CANARY).reveal() == CANARY


def test_a_secret_shows_itself_in_no_text() -> None:
    secret = Secret(CANARY)
    for text in (
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r}",
        "%s" % secret,  # noqa: UP031 - as a logger does
        repr([secret]),
        repr({"key": secret}),
    ):
        assert "canary" not in text
        assert CANARY.hex() not in text


def test_a_traceback_with_all_locals_shows_no_secret() -> None:
    def fails(secret: Secret) -> None:
        raise ValueError(secret)

    with pytest.raises(ValueError, match="Secret") as caught:
        fails(Secret(CANARY))
    shown = traceback.TracebackException.from_exception(
        caught.value, capture_locals=True
    )
    assert "Secret(...)" in "".join(shown.format())
    # This very test has the canary among its globals, and nowhere else.
    assert "canary-of" not in "".join(shown.format())


def test_a_secret_leaves_its_process_in_no_pickle_and_has_no_copies() -> None:
    secret = Secret(CANARY)
    for leave in (lambda: secret.__reduce_ex__(5), lambda: copy.deepcopy(secret)):
        with pytest.raises(TypeError, match="copied"):
            leave()
    assert not hasattr(Secret(CANARY), "__dict__")


def test_secrets_compare_by_their_bytes_and_with_nothing_else() -> None:
    assert Secret(CANARY) == Secret(bytes(CANARY))
    assert Secret(CANARY) != Secret(CANARY[:-1])
    assert Secret(CANARY) != CANARY


def test_no_dictionary_finds_a_secret() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        {Secret(CANARY)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_is_named_by_the_hash_of_its_kind_and_bytes(kind: KeyKind) -> None:
    form = cbor2.dumps(["cloister/key-id/1", kind, CANARY], canonical=True)
    name = key_id(kind, Secret(CANARY))
    assert name == f"sha256:{hashlib.sha256(form).hexdigest()}"


def test_the_names_of_keys_stay_what_they_are() -> None:
    # They stand in plans.
    assert key_id("data", Secret(bytes(32))) == (
        "sha256:c5730ace1ff651d4f9312ecfbb4e88a0080fbef90cccf8de2486ebb79df46233"
    )
    assert key_id("state-share", Secret(bytes(32))) == (
        "sha256:f003bd42b5b64d2bd42ddcde49b46039de5a59acaa05849004e81a76bf547cf3"
    )


@given(
    st.sampled_from(KINDS),
    st.binary(max_size=40),
    st.sampled_from(KINDS),
    st.binary(max_size=40),
)
def test_two_keys_never_have_one_name(
    kind: KeyKind, key: bytes, other_kind: KeyKind, other: bytes
) -> None:
    same = (kind, key) == (other_kind, other)
    assert (key_id(kind, Secret(key)) == key_id(other_kind, Secret(other))) == same


def test_new_keys_are_long_and_different() -> None:
    keys = [new_key().reveal() for _ in range(100)]
    assert {len(key) for key in keys} == {KEY_BYTES}
    assert len(set(keys)) == 100
