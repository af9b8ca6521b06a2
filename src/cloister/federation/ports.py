"""The server's two listening ports: one to be admitted at, one to train at."""

from __future__ import annotations

from datetime import timedelta
from typing import Protocol, Self

import grpc
from structlog.typing import FilteringBoundLogger

from cloister.federation.audit import CallAudit
from cloister.federation.coordinator import Coordinator
from cloister.federation.training_service import TrainingService
from cloister.federation.transfer_sizes import transfer_sizes
from cloister.plan.site import Address
from cloister.ratls.admission import new_authority
from cloister.ratls.admission_table import AdmissionTable, Peer
from cloister.ratls.audit import DoorAudit
from cloister.ratls.certificate import make_certificate
from cloister.ratls.challenge import MAX_MESSAGE_BYTES
from cloister.ratls.channels import (
    MAX_CHUNK_BYTES,
    enrolment_credentials,
    listen,
    prove_tls13_only,
    start,
    stranger_options,
    training_credentials,
    training_options,
)
from cloister.ratls.enrolment_service import EnrolmentService
from cloister.ratls.identity import Spki
from cloister.ratls.node import Node

# Of the server's certificate and of the admission CA. Their keys last as long as the
# process, so nothing is gained by a shorter life, and a long run would be cut.
CERTIFICATE_LIFE = timedelta(days=365)
# Time for the last answers to reach the workers before the ports close.
_GRACE_SECONDS = 3.0


class PortsAudit(DoorAudit, CallAudit, Protocol):
    """Where what happens at the ports is recorded."""


class Ports:
    """Both listening ports, open while the context lasts.

    Args:
        node: The server's node.
        coordinator: Runs the rounds.
        enrolment: Where the enrolment port listens.
        training: Where the training port listens.
        audit: Receives admissions and refusals.
        log: One line for each decision.

    Attributes:
        table: Who is admitted.
        admission_key: Of the admission CA.
    """

    def __init__(
        self,
        node: Node,
        coordinator: Coordinator,
        *,
        enrolment: Address,
        training: Address,
        audit: PortsAudit,
        log: FilteringBoundLogger,
    ) -> None:
        at = node.clock()
        certificate = make_certificate(
            node.identity, node.platform, at=at, life=CERTIFICATE_LIFE
        )
        authority = new_authority(at=at, life=CERTIFICATE_LIFE)
        self.admission_key: Spki = authority.spki
        self.table = AdmissionTable(node.clock)
        # Admissions lapse by rounds as well as by time.
        coordinator.subscribe(lambda header: self.table.advance(header.round))
        self._enrolment_address = enrolment
        self._training_address = training
        self._log = log
        self._coordinator = coordinator
        self._met: set[str] = set()
        sizes = transfer_sizes(len(node.plan.workers))
        self._training = grpc.aio.server(
            options=training_options(
                MAX_CHUNK_BYTES,
                window_bytes=sizes.window_bytes,
                read_bytes=sizes.read_bytes,
            )
        )
        self._training_service = TrainingService(
            node, coordinator, table=self.table, audit=audit, log=log
        )
        self._training.add_generic_rpc_handlers((self._training_service,))
        self._training_credentials = training_credentials(
            node.identity, certificate, admission_root_pem=authority.certificate_pem()
        )
        self._enrolment_service = EnrolmentService(
            node,
            authority=authority,
            table=self.table,
            audit=audit,
            log=log,
            on_admitted=self._note_admission,
        )
        self._enrolment = grpc.aio.server(options=stranger_options(MAX_MESSAGE_BYTES))
        self._enrolment.add_generic_rpc_handlers((self._enrolment_service,))
        self._enrolment_credentials = enrolment_credentials(node.identity, certificate)

    async def __aenter__(self) -> Self:
        enrolment, training = self._enrolment_address, self._training_address
        try:
            # The training port first: whoever enrols may call it at once. Each is
            # started before the next one listens, for only what runs can be stopped.
            listen(self._training, training, self._training_credentials)
            await start(self._training)
            await prove_tls13_only(training)
            listen(self._enrolment, enrolment, self._enrolment_credentials)
            await start(self._enrolment)
            await prove_tls13_only(enrolment)
        except BaseException:
            # Also when cancelled: an open port would outlive its server. Raised again.
            await self._stop()
            raise
        self._log.info("listening", enrolment=str(enrolment), training=str(training))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def _stop(self) -> None:
        await self._enrolment.stop(0)
        self._enrolment_service.close()
        await self._training.stop(_GRACE_SECONDS)
        self._training_service.close()

    def _note_admission(self, peer: Peer) -> None:
        """A party that comes is a sign of life; one that comes again and again is not.

        Renewals cost nothing, and a run would wait for ever for who only renews.
        """
        if peer.party not in self._met:
            self._met.add(peer.party)
            self._coordinator.touch()
