from __future__ import annotations

from dataclasses import replace

import pytest

from cloister.errors import VerificationError
from cloister.federation.audit_signing import ServerSigner, keyid_of, verify_link
from cloister.ratls.epochs import key_digest
from cloister.ratls.node import Node
from cloister.storage.audit_chain import Link, next_link


def signed(node: Node) -> Link:
    signer = ServerSigner(node.identity)
    return next_link(None, entry=b'{"kind":"x"}', at_ms=1, signer=signer)


def test_a_record_is_signed_by_the_servers_key_and_says_which_one(server: Node) -> None:
    link, key = signed(server), server.identity.tls_spki
    assert verify_link(link, key=key) is link
    assert link.envelope.keyid == keyid_of(key) == key_digest(key).hex()


def test_a_record_of_another_key_or_name_is_refused(server: Node, bob: Node) -> None:
    link, other = signed(server), signed(bob)
    key = server.identity.tls_spki
    for envelope in (
        other.envelope,
        replace(other.envelope, keyid=link.envelope.keyid),
        replace(link.envelope, keyid=other.envelope.keyid),
        replace(link.envelope, signature=b"\0"),
        replace(link.envelope, payload=b"{}"),
    ):
        with pytest.raises(VerificationError) as caught:
            verify_link(replace(link, envelope=envelope), key=key)
        assert caught.value.code == "audit-signature"
