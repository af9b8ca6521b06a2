"""The custodian's side of a session with another party's node, without any network.

Such a node comes for one thing: this party's share of its state key. It has a warrant
of its own custodian, and gets none here; it deposits nothing. It is judged by the plan
and by this party's own policy, and its epoch is remembered, so that a node which was
replaced gets nothing once its successor was here.

The numbers are those of `messages.py`. Steps that read or write the register wait for a
disk, so they belong in a thread.
"""

from __future__ import annotations

from cloister.custody.custodian import Custodian, Proved, Release
from cloister.custody.hello import check_same, differs, plan_named, transcript_with
from cloister.custody.messages import (
    CustodianChallenge,
    CustodianProof,
    KeyRequest,
    Met,
)
from cloister.errors import VerificationError
from cloister.plan.keys import parse_party_key
from cloister.plan.plan import Party, Plan
from cloister.ratls.challenge import Answer, ClientProof, Hello
from cloister.ratls.identity import Spki
from cloister.ratls.proofs import verify_possession
from cloister.ratls.transcript import Transcript
from cloister.ratls.warrant import Warrant, verify_warrant, wanted_terms


class ShareMeeting:
    """One session of another party's node with a custodian that holds a share.

    Args:
        custodian: The custodian.
        tls_key: Its TLS key, as its certificate shows it.
    """

    def __init__(self, custodian: Custodian, *, tls_key: Spki) -> None:
        self._custodian = custodian
        self._tls_key = tls_key
        self._plan: Plan | None = None
        self._transcript: Transcript | None = None
        self._warrant: Warrant | None = None
        self._proved: Proved | None = None
        self._epoch: int | None = None

    @property
    def proved(self) -> Proved | None:
        """What the node proved; None so far."""
        return self._proved

    def challenge(self, hello: Hello) -> CustodianChallenge:
        """(3) Answers a node that this custodian holds a share for.

        Raises:
            VerificationError: If it is anything else.
        """
        custodian = self._custodian
        plan = plan_named(hello, custodian=custodian)
        node = _shared_with(hello, plan=plan, custodian_party=custodian.party)
        transcript = transcript_with(
            hello, plan=plan, node=node, custodian=custodian, tls_key=self._tls_key
        )
        self._plan, self._transcript = plan, transcript
        return CustodianChallenge(nonce=transcript.server_nonce)

    def prove(self, answer: Answer) -> CustodianProof:
        """(5) Checks the node's signature and warrant; signs with the party's key.

        Raises:
            VerificationError: If either does not hold; nothing was signed then.
        """
        transcript, plan = self._transcript, self._plan
        if transcript is None or plan is None:
            raise RuntimeError("challenge first")
        verify_possession(answer.signature, transcript)
        verify_warrant(
            answer.warrant,
            key=parse_party_key(plan.find_party(transcript.client_party).key),
            wanted=wanted_terms(
                run_id=transcript.run_id,
                plan_hash=transcript.plan_hash,
                role=transcript.client_role,
                party=transcript.client_party,
                tls_key=transcript.client_key,
            ),
            # Its time raises no floor: a party could push this clock ahead with it.
            at=self._custodian.appraiser.clock(),
        )
        self._warrant = answer.warrant
        return CustodianProof(
            signature=self._custodian.key.sign(transcript.custodian_bytes())
        )

    def meet(self, unverified: ClientProof) -> Met:
        """(7) Verifies what the node proves, and remembers its epoch.

        Raises:
            VerificationError: If the proof fails, its warrant ended meanwhile, or a
                newer node of its party was here; no epoch is remembered then.
            ProtocolError: If too many nodes of its party came of late.
            StorageError: If the register cannot be written.
        """
        transcript, plan, warrant = self._transcript, self._plan, self._warrant
        if transcript is None or plan is None or warrant is None:
            raise RuntimeError("prove first")
        self._proved = self._custodian.judge(
            unverified, plan=plan, transcript=transcript, warrant=warrant
        )
        # Only what is genuine is remembered: a forger must not age the real node.
        self._epoch = self._custodian.meet(self._proved).epoch
        return Met()

    def release(self, request: KeyRequest) -> Release:
        """Seals this party's share to the node.

        Raises:
            ProtocolError: If it asks for nothing, twice for one, or too often.
            VerificationError: If it asks for anything else, the share is not there, or
                it was replaced.
            StorageError: If the share cannot be read, or the register not be written.
        """
        if self._proved is None or self._epoch is None:
            raise RuntimeError("meet first")
        return self._custodian.release(
            request.kinds, proved=self._proved, epoch=self._epoch
        )


def _shared_with(hello: Hello, *, plan: Plan, custodian_party: str) -> Party:
    """Returns the party of a node that may come for a share."""
    own = plan.find_party(custodian_party)
    node = next((it for it in plan.party if it.name == hello.party), None)
    if own.state_share is None or node is None or node == own:
        raise differs("party", own.name, hello.party)
    check_same("role", node.role, hello.role)
    if not node.has_state:
        # Said here already, before it makes evidence that would be for nothing.
        raise VerificationError(
            "the plan names no key for this node here",
            code="key-not-for-node",
            expected="an attested node that trains",
            got=f"{node.role} {node.name}, admit = {node.admit!r}",
        )
    return node
