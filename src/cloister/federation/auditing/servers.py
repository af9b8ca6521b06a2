"""Who signs a run's log: one server after another, each introduced by a record.

Step 4 of `audit_verification`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cloister.attestation.policy import Verdict
from cloister.attestation.trust_root import TrustRoot
from cloister.errors import VerificationError
from cloister.federation.audit_records import (
    AnyEntry,
    CollateralUsed,
    RunOpened,
    ServerIntroduced,
    WarrantRenewed,
)
from cloister.federation.audit_signing import keyid_of, verify_link
from cloister.federation.auditing.opening import Opening
from cloister.federation.auditing.report import Moment
from cloister.plan.keys import parse_party_key
from cloister.ratls.audit_collateral import KeptCollateral, root_of
from cloister.ratls.audit_key import AuditKey, verify_audit_key
from cloister.ratls.certificate import CLOCK_TOLERANCE
from cloister.ratls.identity import Spki
from cloister.ratls.warrant import Warrant, WarrantTerms, verify_warrant, wanted_terms
from cloister.storage.audit_chain import Link


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The server in force.

    Attributes:
        terms: Of its newest warrant.
        key_sha256: Its name in the log, hex.
        admission_key: Of its admission CA.
        encryption_key: X25519, 32 bytes.
    """

    terms: WarrantTerms
    key_sha256: str
    admission_key: bytes
    encryption_key: bytes


class Servers:
    """Follows who signs."""

    def __init__(self) -> None:
        self._in_force: Server | None = None
        # What a server writes before it is introduced: the opening, and the collateral
        # that its introduction names.
        self._before: list[Link] = []
        self._root: TrustRoot | None = None

    @property
    def root(self) -> TrustRoot:
        """The root of the plan's policies; there is one since the first introduction.

        Raises:
            VerificationError: If none was introduced yet.
        """
        if self._root is None:
            raise _not_introduced()
        return self._root

    @property
    def in_force(self) -> Server:
        """The server that writes now.

        Raises:
            VerificationError: If none was introduced yet.
        """
        if self._in_force is None:
            raise _not_introduced()
        return self._in_force

    @property
    def last(self) -> Server | None:
        """The same; None before the first."""
        return self._in_force

    def check_signed(self, link: Link, entry: AnyEntry) -> None:
        """Checks that the server in force signed a record, or the one that follows it.

        Which key signs is decided here and by what was introduced, never by the
        envelope: its keyid is under no signature, and must only agree. An introduction
        is checked by `introduce`, with the records of the same server before it.

        Raises:
            VerificationError: If it did not.
        """
        server, keyid = self._in_force, link.envelope.keyid
        if isinstance(entry, ServerIntroduced):
            return
        if server is not None and keyid == server.key_sha256 and not self._before:
            verify_link(link, key=Spki(server.terms.tls_key))
            return
        first = self._before[0].envelope.keyid if self._before else keyid
        if not isinstance(entry, RunOpened | CollateralUsed) or keyid != first:
            raise VerificationError(
                "the record is not signed by the server in force",
                code="audit-signer",
                expected=f"key {server.key_sha256}" if server else "an introduction",
                got=f"key {keyid[:64]}",
            )
        self._before.append(link)

    @property
    def waiting(self) -> int:
        """How many of the last records nobody has signed, as far as is known yet.

        A server that dies before its introduction leaves some. Nobody was told of
        them, and nothing rests on them.
        """
        return len(self._before)

    def introduce(
        self,
        link: Link,
        unverified: ServerIntroduced,
        *,
        opening: Opening,
        shelf: KeptCollateral,
        at: Moment,
    ) -> Verdict:
        """Returns the verdict on a server that signs from now on.

        Steps: (1) it signed this record, and those that it wrote before it; (2) its
        warrant is the server's party's, for its TLS key, and in force; (3) its epoch is
        higher than that of the server before; (4) its evidence was made for its keys,
        its epoch and the head before this very record, is genuine with the recorded
        collateral, and is what the plan's policy wants. The caller compares the state
        that it begins with.

        Raises:
            VerificationError: If any step fails.
        """
        plan, party = opening.plan, opening.plan.server
        key = Spki(unverified.warrant.terms.tls_key)
        # Step 1: the signatures
        for own in (*self._before, link):
            verify_link(own, key=key)
        # Step 2: the warrant
        terms = _check_warrant(unverified.warrant, opening=opening, tls_key=key, at=at)
        # Step 3: the epoch
        _check_newer(terms, self._in_force)
        former = self._in_force is not None
        if unverified.restart != former:
            raise VerificationError(
                "the server says otherwise whether one wrote before it",
                code="audit-restart",
                expected=f"restart {former}",
                got=f"restart {unverified.restart}",
            )
        # Step 4: the evidence
        collateral = shelf.get(unverified.collateral)
        self._root = self._root or root_of(plan, collateral)
        verdict = verify_audit_key(
            unverified.quote,
            key=AuditKey(
                run_id=plan.run_id,
                plan_hash=opening.plan_hash,
                party=party.name,
                epoch=terms.epoch,
                tls_key=key,
                admission_key=Spki(unverified.admission_key),
                encryption_key=unverified.encryption_key,
                previous_head=bytes.fromhex(link.previous),
            ),
            collateral=collateral,
            policy=plan.policy_of(party.name),
            root=self._root,
            at=at.at,
        )
        server = Server(
            terms=terms,
            key_sha256=keyid_of(key),
            admission_key=unverified.admission_key,
            encryption_key=unverified.encryption_key,
        )
        self._before.clear()
        self._in_force = server
        return verdict

    def renew(
        self, unverified: WarrantRenewed, *, opening: Opening, at: Moment
    ) -> None:
        """Takes a newer warrant of the server in force.

        Raises:
            VerificationError: If it does not hold, or is another node's.
        """
        server = self.in_force
        terms = _check_warrant(
            unverified.warrant,
            opening=opening,
            tls_key=Spki(server.terms.tls_key),
            at=at,
        )
        if terms.epoch != server.terms.epoch:
            raise VerificationError(
                "a renewed warrant has another epoch",
                code="audit-epoch",
                expected=str(server.terms.epoch),
                got=str(terms.epoch),
            )
        self._in_force = replace(server, terms=terms)

    def check_warranted(self, at: Moment) -> None:
        """Checks that the server in force is its party's still, give or take a little.

        Raises:
            VerificationError: If its warrant had ended.
        """
        ends = self.in_force.terms.expires_at
        if (at.at - CLOCK_TOLERANCE).timestamp() >= ends:
            raise VerificationError(
                "the server's warrant had ended",
                code="audit-warrant-expired",
                expected=f"a warrant in force after {ends} (Unix time)",
                got=f"{at.at:%Y-%m-%d %H:%M:%SZ}",
            )


def _not_introduced() -> VerificationError:
    return VerificationError(
        "no server is introduced before this record",
        code="audit-signer",
        expected="a server's introduction first",
    )


def _check_warrant(
    unverified: Warrant, *, opening: Opening, tls_key: Spki, at: Moment
) -> WarrantTerms:
    party = opening.plan.server
    wanted = wanted_terms(
        run_id=opening.plan.run_id,
        plan_hash=opening.plan_hash,
        role="server",
        party=party.name,
        tls_key=tls_key,
    )
    return verify_warrant(
        unverified, key=parse_party_key(party.key), wanted=wanted, at=at.at
    )


def _check_newer(terms: WarrantTerms, before: Server | None) -> None:
    """Refuses a server that is not newer: each process has an epoch of its own."""
    if before is not None and terms.epoch <= before.terms.epoch:
        raise VerificationError(
            "a server begins with an epoch that is not higher than the one before",
            code="audit-epoch",
            expected=f"more than {before.terms.epoch}",
            got=str(terms.epoch),
        )
