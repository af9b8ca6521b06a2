"""Servers of collateral on the loopback interface, over real TLS."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote, urlsplit

from typing_extensions import override

from cloister.attestation.pcs_messages import (
    PCK_CRL_CHAIN,
    QE_IDENTITY_CHAIN,
    TCB_INFO_CHAIN,
)
from cloister.attestation.platforms.simulated.pccs import Answer, SimulatedPccs
from cloister.attestation.platforms.simulated.pccs_server import (
    TLS_KEY_FILE,
    SimulatedPccsServer,
    provide_tls_certificate,
)
from cloister.attestation.platforms.simulated.root import SimulatedRoot

LOOPBACK = "127.0.0.1"

Change = Callable[[str, Answer], Answer]


class Clock:
    """A clock that a test sets."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **by: float) -> None:
        self.now += timedelta(**by)


class ChangingPccs(SimulatedPccs):
    """Notes what was asked for, and lets a test change the answers."""

    def __init__(self, root: SimulatedRoot, *, clock: Callable[[], datetime]) -> None:
        super().__init__(root, clock=clock)
        self.asked: list[str] = []
        self.change: Change = lambda _, answer: answer

    @override
    def answer(self, target: str) -> Answer:
        self.asked.append(target)
        return self.change(target, super().answer(target))

    def fail(self) -> None:
        """From now on every answer is an error of the server."""
        self.change = lambda _, __: Answer(status=HTTPStatus.SERVICE_UNAVAILABLE)


class Pccs:
    """A running PCCS.

    Attributes:
        answers: What it says.
        address: Where it is.
        ca_file: Its certificate.
    """

    def __init__(self, answers: ChangingPccs, directory: Path) -> None:
        self.answers = answers
        # TLS looks at the real clock, and so does its certificate.
        self.ca_file = provide_tls_certificate(
            directory, host=LOOPBACK, at=datetime.now(UTC)
        )
        self._server = SimulatedPccsServer(
            answers, host=LOOPBACK, port=0, certificate=self.ca_file
        )
        self.address = self._server.address
        self._thread = threading.Thread(target=self._server.serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends it; its port refuses connections from then on."""
        if self._thread.is_alive():
            self._server.stop()
            self._thread.join()
            self._server.close()


def saying(collateral: Mapping[str, str]) -> Change:
    """Returns a change by which a PCCS says this to whatever it is asked."""

    def document(name: str, field: str, header: str) -> Answer:
        signature = collateral[f"{field}_signature"]
        return Answer(
            status=HTTPStatus.OK,
            body=f'{{"{name}":{collateral[field]},"signature":"{signature}"}}'.encode(),
            headers=((header, quote(collateral[f"{field}_issuer_chain"], safe="")),),
        )

    chain = quote(collateral["pck_crl_issuer_chain"], safe="")
    answers = {
        "tcb": document("tcbInfo", "tcb_info", TCB_INFO_CHAIN),
        "qe/identity": document("enclaveIdentity", "qe_identity", QE_IDENTITY_CHAIN),
        "pckcrl": Answer(
            status=HTTPStatus.OK,
            body=bytes.fromhex(collateral["pck_crl"]),
            headers=((PCK_CRL_CHAIN, chain),),
        ),
        "rootcacrl": Answer(
            status=HTTPStatus.OK, body=collateral["root_ca_crl"].encode()
        ),
    }
    return lambda target, _: answers[urlsplit(target).path.rpartition("v4/")[2]]


Script = Callable[[socket.socket], None]


@contextlib.contextmanager
def raw_server(
    certificate: Path | None, script: Script, *, host: str = LOOPBACK
) -> Iterator[str]:
    """Yields the address of a server that does what `script` says, byte for byte.

    Args:
        certificate: Its certificate, the key beside it; None for no TLS.
        script: Called with the one connection; the request is not read before.
        host: Where to listen.
    """
    context: ssl.SSLContext | None = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, certificate.with_name(TLS_KEY_FILE))
    listener = socket.create_server((host, 0))

    def serve() -> None:
        # A client that does not like us hangs up; that is its test's business.
        with contextlib.suppress(OSError):
            plain, _ = listener.accept()
            with plain:
                if context is None:
                    script(plain)
                    return
                with context.wrap_socket(plain, server_side=True) as connection:
                    script(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"https://{host}:{listener.getsockname()[1]}"
    finally:
        # An accept that still waits is woken by this, and not by closing alone.
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def sends(answer: bytes) -> Script:
    """Returns a script that reads one request and sends `answer`."""

    def script(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(answer)

    return script
