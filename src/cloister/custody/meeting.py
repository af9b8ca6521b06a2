"""The custodian's side of a session with its own party's node, without any network.

The numbers are those of `messages.py`. Steps that read or write the register wait for a
disk, so they belong in a thread.
"""

from __future__ import annotations

from cloister.custody.custodian import Custodian, Proved, Release
from cloister.custody.hello import check_same, plan_named, transcript_with
from cloister.custody.messages import (
    CustodianChallenge,
    CustodianProof,
    Deposit,
    Deposited,
    KeyRequest,
    Possession,
    Warranted,
)
from cloister.plan.plan import Plan
from cloister.ratls.challenge import ClientProof, Hello
from cloister.ratls.identity import Spki
from cloister.ratls.proofs import verify_possession
from cloister.ratls.transcript import Transcript


class CustodianMeeting:
    """One node's session with its party's custodian.

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
        self._proved: Proved | None = None
        self._epoch: int | None = None

    @property
    def proved(self) -> Proved | None:
        """What the node proved; None so far: anybody can hold some TLS key."""
        return self._proved

    def challenge(self, hello: Hello) -> CustodianChallenge:
        """(3) Answers a node of this party, for a plan that the party consented to.

        Raises:
            VerificationError: If it is anything else.
        """
        custodian = self._custodian
        plan = plan_named(hello, custodian=custodian)
        own = plan.find_party(custodian.party)
        check_same("party", own.name, hello.party)
        check_same("role", own.role, hello.role)
        transcript = transcript_with(
            hello, plan=plan, node=own, custodian=custodian, tls_key=self._tls_key
        )
        self._plan, self._transcript = plan, transcript
        return CustodianChallenge(nonce=transcript.server_nonce)

    def prove(self, possession: Possession) -> CustodianProof:
        """(5) Signs the transcript with the party's key.

        Raises:
            VerificationError: If the node does not hold its TLS key.
        """
        if self._transcript is None:
            raise RuntimeError("challenge first")
        verify_possession(possession.signature, self._transcript)
        self._possessed = True
        return CustodianProof(
            signature=self._custodian.key.sign(self._transcript.custodian_bytes())
        )

    def warrant(self, unverified: ClientProof) -> Warranted:
        """(7) Verifies what the node proves, and signs its warrant.

        Raises:
            VerificationError: If the proof fails, or a newer node has taken its place;
                no epoch is spent then.
            ProtocolError: If it had too many warrants of late.
            StorageError: If the register cannot be written.
        """
        transcript, plan = self._transcript, self._plan
        if transcript is None or plan is None or not self._possessed:
            raise RuntimeError("prove first")
        custodian = self._custodian
        self._proved = custodian.judge(
            unverified, plan=plan, transcript=transcript, warrant=None
        )
        warrant = custodian.warrant(self._proved)
        self._epoch = warrant.terms.epoch
        known = custodian.register.known_mark(plan.run_id)
        return Warranted(
            warrant=warrant,
            mark=known.mark if known else None,
            mark_plan=known.plan_hash if known else None,
        )

    def deposit(self, deposit: Deposit) -> Deposited:
        """Remembers how far the run has come.

        Raises:
            VerificationError: If it contradicts what is known, or the node was
                replaced.
            StorageError: If the register cannot be written.
        """
        if self._transcript is None or self._epoch is None:
            raise RuntimeError("warrant first")
        mark = self._custodian.deposit(
            self._transcript.plan_hash,
            tls_key=self._transcript.client_key,
            mark=deposit.mark,
        )
        return Deposited(mark=mark)

    def release(self, request: KeyRequest) -> Release:
        """Seals the keys that the node asks for to it.

        Raises:
            ProtocolError: If it asks for nothing, twice for one, or too often.
            VerificationError: If they are not for it, not there, or it was replaced.
            StorageError: If a key cannot be read, or the register not be written.
        """
        if self._proved is None or self._epoch is None:
            raise RuntimeError("warrant first")
        return self._custodian.release(
            request.kinds, proved=self._proved, epoch=self._epoch
        )
