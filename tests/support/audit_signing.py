"""Somebody who signs audit records, and what checks them as an auditor would."""

from __future__ import annotations

import io
from collections.abc import Iterable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.errors import VerificationError
from cloister.plan.keys import format_party_key
from cloister.storage.audit_chain import Link, next_link, parse_links
from cloister.storage.dsse import encode_envelope


class PartySigner:
    """Signs with a party's key.

    Args:
        key: The key; None for a fresh one.
    """

    def __init__(self, key: Ed25519PrivateKey | None = None) -> None:
        self.key = key or Ed25519PrivateKey.generate()
        self.keyid = format_party_key(self.key)

    def sign(self, message: bytes, /) -> bytes:
        return self.key.sign(message)

    def verify(self, link: Link) -> Link:
        """Returns the record, if this signer signed it."""
        what = f"record {link.seq} is another one's"
        if link.envelope.keyid != self.keyid:
            raise VerificationError(what, code="keyid")
        try:
            self.key.public_key().verify(link.envelope.signature, link.envelope.signed)
        except InvalidSignature as error:
            raise VerificationError(what, code="signature") from error
        return link


def made_links(entries: Iterable[bytes], *, signer: PartySigner) -> list[Link]:
    """Returns a chain of these entries, one a second from 1,000,000 ms on."""
    links: list[Link] = []
    for number, entry in enumerate(entries):
        last = links[-1] if links else None
        at_ms = 1_000_000 + 1_000 * number
        links.append(next_link(last, entry=entry, at_ms=at_ms, signer=signer))
    return links


def log_of(links: Iterable[Link]) -> bytes:
    """Returns the links as a file holds them."""
    return b"".join(encode_envelope(link.envelope) + b"\n" for link in links)


def verified_links(unverified: bytes, *, signer: PartySigner) -> list[Link]:
    """Returns the records of a log, each of which `signer` must have signed."""
    return [signer.verify(link) for link in parse_links(io.BytesIO(unverified))]
