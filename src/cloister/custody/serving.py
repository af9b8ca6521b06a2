"""A custodian at work: one port, open until it is stopped."""

from __future__ import annotations

from datetime import timedelta
from typing import Self

import grpc
from structlog.typing import FilteringBoundLogger

from cloister.custody.certificate import make_custodian_certificate
from cloister.custody.custodian import Custodian
from cloister.custody.service import CUSTODY_LIMITS, CustodyService
from cloister.plan.site import Address
from cloister.ratls.challenge import MAX_MESSAGE_BYTES
from cloister.ratls.channels import (
    enrolment_credentials,
    listen,
    prove_tls13_only,
    start,
    stranger_options,
)
from cloister.ratls.identity import new_identity
from cloister.ratls.limits import Limits

# The TLS key lives in this process's memory, and the party's key, which signs the
# certificate, beside it: the one is worth no more time than the other.
CERTIFICATE_LIFE = timedelta(days=365)


class CustodianPort:
    """The custodian's port, open while the context lasts.

    Args:
        custodian: Decides.
        address: Where to listen.
        log: One line for each decision.
        limits: What nodes may take up.
    """

    def __init__(
        self,
        custodian: Custodian,
        address: Address,
        *,
        log: FilteringBoundLogger,
        limits: Limits = CUSTODY_LIMITS,
    ) -> None:
        identity = new_identity()
        certificate = make_custodian_certificate(
            custodian.party,
            custodian.key,
            identity.tls_key,
            at=custodian.appraiser.clock(),
            life=CERTIFICATE_LIFE,
        )
        self._address = address
        self._log = log
        self._service = CustodyService(
            custodian, tls_key=identity.tls_spki, log=log, limits=limits
        )
        self._server = grpc.aio.server(options=stranger_options(MAX_MESSAGE_BYTES))
        self._server.add_generic_rpc_handlers((self._service,))
        self._credentials = enrolment_credentials(identity, certificate)

    async def __aenter__(self) -> Self:
        try:
            listen(self._server, self._address, self._credentials)
            await start(self._server)
            await prove_tls13_only(self._address)
        except BaseException:
            # Also when cancelled: an open port would outlive its custodian. Raised
            # again.
            await self._server.stop(0)
            raise
        self._log.info("custodian-listening", address=str(self._address))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0)
        self._service.close()
