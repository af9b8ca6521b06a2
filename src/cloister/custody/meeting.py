"""The custodian's side of a node's session, step by step, without any network.

The numbers are those of `messages.py`. Steps that read or write the register wait for a
disk, so they belong in a thread.
"""

from __future__ import annotations

import secrets

from cloister.custody.custodian import Custodian
from cloister.custody.messages import (
    CustodianChallenge,
    CustodianProof,
    Deposit,
    Deposited,
    Possession,
    Warranted,
)
from cloister.errors import VerificationError
from cloister.plan.plan import Plan, PlanHash
from cloister.ratls.challenge import NONCE_BYTES, VERSION, ClientProof, Hello
from cloister.ratls.epochs import key_digest
from cloister.ratls.identity import Spki, parse_spki
from cloister.ratls.proofs import verify_client_proof, verify_possession
from cloister.ratls.transcript import Nonce, Transcript


class CustodianMeeting:
    """One node's session with its custodian.

    Args:
        custodian: The custodian.
        tls_key: Its TLS key, as its certificate shows it.
    """

    def __init__(self, custodian: Custodian, *, tls_key: Spki) -> None:
        self._custodian = custodian
        self._tls_key = tls_key
        self._plan: Plan | None = None
        self._transcript: Transcript | None = None
        self._possessed = False
        self._proved = False
        self._warranted = False

    @property
    def known(self) -> bool:
        """Whether the node proved itself; anybody can hold some TLS key."""
        return self._proved

    @property
    def node_key(self) -> bytes:
        """SHA-256 of the node's TLS key, for logs."""
        return key_digest(self._so_far().client_key)

    def challenge(self, hello: Hello) -> CustodianChallenge:
        """(3) Answers a node of this party, for a plan that the party consented to.

        Raises:
            VerificationError: If it is anything else.
        """
        custodian = self._custodian
        # First: a node waits for a consent, and another version would wait in vain.
        _check_same("protocol version", str(VERSION), str(hello.version))
        plan = custodian.plan(PlanHash(hello.plan_hash))
        own = plan.find_party(custodian.party)
        _check_same("run", plan.run_id, hello.run_id)
        _check_same("party", own.name, hello.party)
        _check_same("role", own.role, hello.role)
        parse_spki(hello.tls_key)
        nonce = Nonce(secrets.token_bytes(NONCE_BYTES))
        self._plan = plan
        self._transcript = Transcript(
            run_id=plan.run_id,
            plan_hash=PlanHash(hello.plan_hash),
            client_role=own.role,
            client_party=own.name,
            server_role="custodian",
            server_party=own.name,
            client_nonce=Nonce(hello.nonce),
            server_nonce=nonce,
            client_key=Spki(hello.tls_key),
            server_key=self._tls_key,
            admission_key=b"",
            client_encryption_key=hello.encryption_key,
            server_encryption_key=b"",
        )
        return CustodianChallenge(nonce=nonce)

    def prove(self, possession: Possession) -> CustodianProof:
        """(5) Signs the transcript with the party's key.

        Raises:
            VerificationError: If the node does not hold its TLS key.
        """
        transcript = self._so_far()
        verify_possession(possession.signature, transcript)
        self._possessed = True
        return CustodianProof(
            signature=self._custodian.key.sign(transcript.custodian_bytes())
        )

    def warrant(self, unverified: ClientProof) -> Warranted:
        """(7) Verifies what the node proves, and signs its warrant.

        Raises:
            VerificationError: If the proof fails, or a newer node has taken its place;
                no epoch is spent then.
            StorageError: If the register cannot be written.
        """
        transcript, plan = self._so_far(), self._plan
        if plan is None or not self._possessed:
            raise RuntimeError("prove first")
        custodian = self._custodian
        verify_client_proof(
            unverified,
            party=plan.find_party(custodian.party),
            transcript=transcript,
            appraise=lambda quote, bound: custodian.appraise(
                quote, plan=plan, expected_report_data=bound
            ),
        )
        self._proved = True
        warrant = custodian.warrant(transcript.plan_hash, tls_key=transcript.client_key)
        self._warranted = True
        return Warranted(warrant=warrant, mark=custodian.register.mark(plan.run_id))

    def deposit(self, deposit: Deposit) -> Deposited:
        """Remembers how far the run has come.

        Raises:
            VerificationError: If it contradicts what is known, or the node was
                replaced.
            StorageError: If the register cannot be written.
        """
        if not self._warranted:
            raise RuntimeError("warrant first")
        transcript = self._so_far()
        mark = self._custodian.deposit(
            transcript.plan_hash, tls_key=transcript.client_key, mark=deposit.mark
        )
        return Deposited(mark=mark)

    def _so_far(self) -> Transcript:
        if self._transcript is None:
            raise RuntimeError("challenge first")
        return self._transcript


def _check_same(name: str, expected: str, got: str) -> None:
    if expected != got:
        raise VerificationError(
            f"the node is of another {name}",
            code=f"{name.rsplit(maxsplit=1)[-1]}-differs",
            expected=expected,
            got=got,
            remedy="A custodian serves the nodes of its own party alone.",
        )
