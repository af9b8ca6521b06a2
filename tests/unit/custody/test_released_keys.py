from __future__ import annotations

import hashlib
import traceback
from dataclasses import fields, replace
from typing import Any

import cbor2
import msgspec
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.custody.released_keys import (
    MAX_SEALED_BYTES,
    check_key,
    open_keys,
    seal_keys,
)
from cloister.errors import VerificationError
from cloister.plan.plan import PlanHash
from cloister.ratls.identity import NodeIdentity, new_identity
from cloister.ratls.transcript import Nonce, Transcript
from cloister.storage.keys import KeyKind, Secret, key_id, new_key
from cloister.storage.model_vault import new_identity as new_vault

NODE = new_identity()
EPOCH = 3
VAULT, RECIPIENT = new_vault()
KEYS: dict[KeyKind, Secret] = {
    "data": new_key(),
    "state-share": new_key(),
    "vault": Secret(VAULT.encode()),
}
SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def digest_of(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


SAID = Transcript(
    run_id="blobs/a",
    plan_hash=PlanHash(digest_of("plan")),
    client_role="worker",
    client_party="alice",
    server_role="custodian",
    server_party="alice",
    client_nonce=Nonce(digest_of("client")),
    server_nonce=Nonce(digest_of("server")),
    client_key=NODE.tls_spki,
    server_key=new_identity().tls_spki,
    admission_key=b"",
    client_encryption_key=NODE.encryption_public,
    server_encryption_key=b"",
)
OTHER: dict[str, Any] = {
    "run_id": "blobs/b",
    "plan_hash": digest_of("another plan"),
    "client_role": "server",
    "client_party": "bob",
    "server_role": "server",
    "server_party": "bob",
    "client_nonce": digest_of("another"),
    "server_nonce": digest_of("another"),
    "client_key": new_identity().tls_spki,
    "server_key": new_identity().tls_spki,
    "admission_key": new_identity().tls_spki,
    "client_encryption_key": new_identity().encryption_public,
    "server_encryption_key": new_identity().encryption_public,
}
SEALED = seal_keys(KEYS, transcript=SAID, epoch=EPOCH)


def info_of(transcript: Transcript, epoch: int) -> bytes:
    """The info as the specification has it, from the transcript's own order."""
    items = [getattr(transcript, field.name) for field in fields(transcript)]
    return cbor2.dumps(["cloister/released-keys/1", *items, epoch], canonical=True)


def seal_raw(content: bytes) -> bytes:
    """Seals as a custodian would that knows no rules."""
    to = X25519PublicKey.from_public_bytes(SAID.client_encryption_key)
    return SUITE.encrypt(content, to, info=info_of(SAID, EPOCH))


def refused(
    sealed: bytes,
    *,
    identity: NodeIdentity = NODE,
    transcript: Transcript = SAID,
    epoch: int = EPOCH,
) -> str:
    """Returns why something does not open, with all that is told of it."""
    with pytest.raises(VerificationError) as caught:
        open_keys(sealed, identity=identity, transcript=transcript, epoch=epoch)
    assert caught.value.code == "released-keys"
    # Not even a suppressed cause may quote what was inside.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return "".join(traceback.format_exception(caught.value))


def test_the_node_of_the_session_opens_what_was_released() -> None:
    opened = open_keys(SEALED, identity=NODE, transcript=SAID, epoch=EPOCH)
    assert opened == KEYS
    assert len(SEALED) <= MAX_SEALED_BYTES


def test_they_travel_as_the_specification_says() -> None:
    content = SUITE.decrypt(SEALED, NODE.encryption_key, info=info_of(SAID, EPOCH))
    assert msgspec.msgpack.decode(content) == {
        kind: key.reveal() for kind, key in KEYS.items()
    }


def test_the_same_keys_are_sealed_anew_each_time() -> None:
    again = seal_keys(KEYS, transcript=SAID, epoch=EPOCH)
    assert again != SEALED
    assert not any(key.reveal() in again for key in KEYS.values())


def test_every_item_of_a_transcript_is_tried() -> None:
    assert set(OTHER) == {field.name for field in fields(Transcript)}


@pytest.mark.parametrize("name", OTHER)
def test_nothing_opens_in_a_session_that_differs_in_one_thing(name: str) -> None:
    refused(SEALED, transcript=replace(SAID, **{name: OTHER[name]}))


@pytest.mark.parametrize("epoch", [0, EPOCH - 1, EPOCH + 1])
def test_nothing_opens_under_another_epoch(epoch: int) -> None:
    refused(SEALED, epoch=epoch)


def test_a_node_of_the_same_code_opens_nothing_of_another() -> None:
    """It runs the very same code, and its host feeds it what was for another node."""
    twin = new_identity()
    refused(SEALED, identity=twin)
    own = replace(
        SAID,
        client_key=twin.tls_spki,
        client_encryption_key=twin.encryption_public,
    )
    refused(SEALED, identity=twin, transcript=own)


def test_every_flipped_bit_is_refused() -> None:
    sealed = seal_keys({"data": KEYS["data"]}, transcript=SAID, epoch=EPOCH)
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        # X25519 takes no notice of one of them (RFC 7748, 5); HPKE does.
        refused(bytes(changed))


@pytest.mark.parametrize("length", [0, 1, 31, 32, 47, 48, len(SEALED) - 1])
def test_every_truncation_is_refused(length: int) -> None:
    refused(SEALED[:length])
    refused(SEALED[:length] + SEALED[length + 1 :])


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=300))
def test_noise_is_refused(noise: bytes) -> None:
    refused(noise)
    refused(SEALED + noise[:1] + b"\0")


CANARY = "canary-of-a-key"
_pack = msgspec.msgpack.encode


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xc1",
        _pack({CANARY: bytes(32)}),
        _pack({"data": CANARY}),
        _pack([CANARY]),
        _pack({"data": bytes(32)}) + CANARY.encode(),
        b"\x82" + 2 * (_pack("data") + _pack(CANARY.encode())),
        b"\x81" + _pack("data") + b"\xc6\x00\x00\x00\x0f" + CANARY.encode(),
    ],
)
def test_what_a_custodian_sealed_in_another_form_is_refused_without_a_word_of_it(
    content: bytes,
) -> None:
    assert CANARY not in refused(seal_raw(content))


@pytest.mark.parametrize("point", [bytes(32), b"\1" + bytes(31), b"short"])
def test_nothing_is_sealed_to_a_key_that_anybody_can_open(point: bytes) -> None:
    transcript = replace(SAID, client_encryption_key=point)
    with pytest.raises(VerificationError) as caught:
        seal_keys(KEYS, transcript=transcript, epoch=EPOCH)
    assert caught.value.code == "released-keys"
    assert caught.value.__context__ is None


def name_of(kind: KeyKind) -> str:
    return RECIPIENT if kind == "vault" else key_id(kind, KEYS[kind])


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_of_the_name_in_the_plan_is_taken(kind: KeyKind) -> None:
    key = KEYS[kind]
    name = name_of(kind)
    assert check_key(kind, key, name=name, custodian="alice") is key


@pytest.mark.parametrize("kind", KEYS)
def test_any_other_key_is_not(kind: KeyKind) -> None:
    others = [
        new_key(),
        Secret(b""),
        Secret(b"\xff" * 74),
        Secret(new_vault()[0].encode()),
    ]
    others += [key for other, key in KEYS.items() if other != kind]
    for other in others:
        with pytest.raises(VerificationError, match="'bob'") as caught:
            check_key(kind, other, name=name_of(kind), custodian="bob")
        assert caught.value.code == "key-differs"
        told = "".join(traceback.format_exception(caught.value))
        assert VAULT not in told
        assert caught.value.__context__ is None


def test_a_key_is_of_one_kind_alone() -> None:
    """The same bytes as a data key and as a share would have two names."""
    key = KEYS["data"]
    name = key_id("data", key)
    with pytest.raises(VerificationError):
        check_key("state-share", key, name=name, custodian="alice")


def test_hpke_itself_refuses_another_info() -> None:
    with pytest.raises(InvalidTag):
        SUITE.decrypt(SEALED, NODE.encryption_key, info=b"")
