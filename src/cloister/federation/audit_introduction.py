"""How a server comes into the audit log: evidence over its keys and its place there."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.attestation.collateral import Collateral
from cloister.federation.audit_records import ServerIntroduced
from cloister.ratls.audit_key import AuditKey, audit_key_report_data, verify_audit_key
from cloister.ratls.identity import Spki
from cloister.ratls.node import Node
from cloister.ratls.testimony import collateral_sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduction:
    """A server that begins, or begins again.

    Attributes:
        node: The server's node.
        admission_key: Of its admission CA.
        completed: Rounds completed in the state that it begins with.
        state: SHA-256 of that state.
        restart: Whether another server wrote to the log before.
    """

    node: Node
    admission_key: Spki
    completed: int
    state: bytes
    restart: bool

    def collateral(self, head: bytes) -> Collateral:
        """Returns what the server's evidence is judged with, after a trial.

        Args:
            head: The log's head now; the trial says nothing of the place.

        Raises:
            VerificationError: If the plan refuses the evidence.
            CloisterError: If there is none, or no collateral for it.
        """
        bound = audit_key_report_data(self._key(head))
        judged = self.node.appraiser.judge(
            self.node.platform.quote(bound),
            policy=self.node.plan.policy_of(self.node.party),
            expected_report_data=bound,
        )
        return judged.collateral

    def entry(self, head: bytes, *, collateral: Collateral) -> ServerIntroduced:
        """Returns the record, with evidence that holds.

        Args:
            head: The log's head before it.
            collateral: What `collateral` returned; the log has it by now.

        Raises:
            VerificationError: If the plan refuses the evidence.
            PlatformError: If there is none.
        """
        node, key = self.node, self._key(head)
        quote = node.platform.quote(audit_key_report_data(key))
        verify_audit_key(
            quote,
            key=key,
            collateral=collateral,
            policy=node.plan.policy_of(node.party),
            root=node.appraiser.root,
            at=node.clock(),
        )
        return ServerIntroduced(
            warrant=node.warrant.current,
            quote=quote,
            collateral=collateral_sha256(collateral.to_json()),
            admission_key=self.admission_key,
            encryption_key=key.encryption_key,
            completed=self.completed,
            state=self.state,
            restart=self.restart,
        )

    def _key(self, head: bytes) -> AuditKey:
        node = self.node
        return AuditKey(
            run_id=node.plan.run_id,
            plan_hash=node.plan_hash,
            party=node.party,
            epoch=node.warrant.current.terms.epoch,
            tls_key=node.identity.tls_spki,
            admission_key=self.admission_key,
            encryption_key=node.identity.encryption_public,
            previous_head=head,
        )
