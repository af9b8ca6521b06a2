"""gRPC ports and channels: TLS 1.3, mutual where data flows, nothing else.

Stock grpcio has no argument for the TLS version and no verify callback. The version is
settled by the environment the process was started with (`TLS13_ONLY`) and proved by
`prove_tls13_only`; the server is authenticated by pinning its attested certificate as
the channel's only root.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.errors import PlatformError, VerificationError
from cloister.plan.site import Address
from cloister.ratls.admission_table import AdmissionTable, Peer
from cloister.ratls.certificate import SERVER_NAME
from cloister.ratls.identity import NodeIdentity, Spki, parse_spki, spki_of
from cloister.ratls.insecure_fetch import open_unverified

# Every node key is ECDSA. A cipher list without any ECDSA suite of TLS 1.2 leaves no
# way to speak 1.2, and 1.3 does not read the list. Must be in the environment before
# grpc is first imported; has no effect afterwards.
TLS13_ONLY = {"GRPC_SSL_CIPHER_SUITES": "ECDHE-RSA-AES128-GCM-SHA256"}

# Largest message on the training port: one chunk and its framing.
MAX_CHUNK_BYTES = 4 * 1024 * 1024
# How often a client asks a silent connection whether it still lives.
KEEPALIVE_SECONDS = 20

# An open connection outlives the certificate it was made with, so none stays open for
# ever. Calls that are under way when it closes are finished first.
CONNECTION_AGE_SECONDS = 3600
# Where strangers connect, a connection without a call only holds a place, and there
# are no more places than files that a process may open.
STRANGER_IDLE_SECONDS = 30
# A TLS handshake takes milliseconds; who takes longer only holds a place.
_TLS_HANDSHAKE_SECONDS = 10

Option = tuple[str, int | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """A client's key and the admission certificate for it (DER)."""

    identity: NodeIdentity
    admission_certificate: bytes


def server_options(
    max_message_bytes: int, *, connection_age_seconds: float = CONNECTION_AGE_SECONDS
) -> tuple[Option, ...]:
    """Returns the options of a listening port.

    Args:
        max_message_bytes: Largest message in either direction.
        connection_age_seconds: How long a connection takes new calls.
    """
    return (
        ("grpc.max_connection_age_ms", int(connection_age_seconds * 1000)),
        ("grpc.server_handshake_timeout_ms", _TLS_HANDSHAKE_SECONDS * 1000),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # Two servers on one port would be a race for each connection.
        ("grpc.so_reuseport", 0),
        # A worker that waits for a slower one is silent but for its keepalives, and
        # gRPC's default takes them for an attack after some minutes (too_many_pings).
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_SECONDS * 500),
    )


def training_options(
    max_message_bytes: int,
    *,
    window_bytes: int,
    read_bytes: int,
    connection_age_seconds: float = CONNECTION_AGE_SECONDS,
) -> tuple[Option, ...]:
    """Returns the options of the port where admitted nodes move models.

    Args:
        max_message_bytes: Largest message in either direction.
        window_bytes: What a client may have on its way.
        read_bytes: What is read at once from a new connection.
        connection_age_seconds: How long a connection takes new calls.
    """
    return (
        *server_options(
            max_message_bytes, connection_age_seconds=connection_age_seconds
        ),
        # gRPC's own estimate grows to many megabytes for each connection, and keeps
        # them: fixed, a thousand workers cost what they must.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", window_bytes),
        ("grpc.experimental.tcp_read_chunk_size", read_bytes),
    )


def stranger_options(max_message_bytes: int) -> tuple[Option, ...]:
    """Returns the options of a listening port that asks for no certificate.

    Args:
        max_message_bytes: Largest message in either direction.
    """
    return (
        *server_options(max_message_bytes),
        ("grpc.max_connection_idle_ms", STRANGER_IDLE_SECONDS * 1000),
    )


def open_channel(
    address: Address,
    *,
    pinned_certificate: bytes,
    max_message_bytes: int,
    client: ClientTls | None = None,
) -> grpc.aio.Channel:
    """Returns a channel to the one server whose certificate (DER) is pinned.

    Args:
        address: Where it listens.
        pinned_certificate: The only root; a leaf, verified before.
        max_message_bytes: Largest message in either direction.
        client: For the training port, the client's own side of mutual TLS.
    """
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_pem(pinned_certificate),
        private_key=client.identity.tls_key_pem() if client else None,
        certificate_chain=_pem(client.admission_certificate) if client else None,
    )
    options: tuple[Option, ...] = (
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.ssl_target_name_override", SERVER_NAME),
        # A proxy from the environment would see who speaks to whom.
        ("grpc.enable_http_proxy", 0),
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
    )
    return grpc.aio.secure_channel(str(address), credentials, options=options)


def enrolment_credentials(
    identity: NodeIdentity, certificate: bytes
) -> grpc.ServerCredentials:
    """Returns credentials that authenticate the server alone."""
    return grpc.ssl_server_credentials([(identity.tls_key_pem(), _pem(certificate))])


def training_credentials(
    identity: NodeIdentity, certificate: bytes, *, admission_root_pem: bytes
) -> grpc.ServerCredentials:
    """Returns credentials that also demand a certificate of the admission CA."""
    return grpc.ssl_server_credentials(
        [(identity.tls_key_pem(), _pem(certificate))],
        root_certificates=admission_root_pem,
        require_client_auth=True,
    )


def listen(
    server: grpc.aio.Server, address: Address, credentials: grpc.ServerCredentials
) -> None:
    """Makes `server` listen at `address`.

    Raises:
        PlatformError: If the port is in use or may not be opened.
    """
    try:
        bound = server.add_secure_port(str(address), credentials)
    except RuntimeError as error:
        raise _cannot_listen(address) from error
    if bound != address.port:
        raise _cannot_listen(address)


async def start(server: grpc.aio.Server) -> None:
    """Starts `server`; when cancelled, it has started all the same and can be stopped.

    gRPC takes the process down if a server is stopped in the middle of its start.
    """
    starting = asyncio.ensure_future(server.start())
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        await starting
        raise


async def prove_tls13_only(address: Address) -> None:
    """Proves on our own port that TLS 1.3 works and 1.2 does not.

    Raises:
        PlatformError: If TLS 1.2 is accepted, or 1.3 is not.
    """
    try:
        stream = await open_unverified(address, newest=ssl.TLSVersion.TLSv1_2)
    except OSError:  # ssl.SSLError above all; what is no answer fails the next step
        pass
    else:
        stream.transport.abort()
        raise PlatformError(
            f"the port {address} accepts TLS 1.2",
            code="tls-too-old",
            expected="TLS 1.3 alone",
            remedy=f"Set {TLS13_ONLY} before grpc is imported; start nodes with the"
            " cloister command.",
        )
    try:
        stream = await open_unverified(address, newest=ssl.TLSVersion.TLSv1_3)
    except (ssl.SSLError, OSError) as error:
        raise PlatformError(
            f"the port {address} does not speak TLS 1.3", code="tls-unusable"
        ) from error
    stream.transport.abort()


class Guard:
    """Asks the admission table about the caller, at the call and at every message.

    Args:
        context: The call.
        table: Who is admitted.

    Raises:
        VerificationError: If the caller is not admitted.
    """

    def __init__(
        self, context: grpc.aio.ServicerContext[bytes, bytes], table: AdmissionTable
    ) -> None:
        self._check: Callable[[Spki], Peer] = table.check
        self._key = _caller_key(context.auth_context())
        self.peer = self._check(self._key)

    def check(self) -> None:
        """Refuses the next message of a caller who is no longer admitted.

        Raises:
            VerificationError: If the admission has lapsed or was replaced.
        """
        self._check(self._key)


def _caller_key(auth_context: Mapping[str, Iterable[bytes]]) -> Spki:
    return _certified_key(b"".join(auth_context.get("x509_pem_cert", ())))


# A worker calls in every round with the same certificate, which the TLS handshake has
# verified; to read it anew takes as long as all else that is done before a small call.
@lru_cache(maxsize=4096)
def _certified_key(pem: bytes) -> Spki:
    try:
        key = x509.load_pem_x509_certificate(pem).public_key()
    except ValueError as error:
        raise VerificationError(
            "the caller showed no certificate",
            code="not-admitted",
            expected="mutual TLS with an admission certificate",
        ) from error
    return spki_of(
        parse_spki(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    )


def _pem(der: bytes) -> bytes:
    return ssl.DER_cert_to_PEM_cert(der).encode()


def _cannot_listen(address: Address) -> PlatformError:
    return PlatformError(
        f"cannot listen at {address}",
        code="port-unusable",
        expected="a free port this user may open",
        got="a port in use, or no permission",
        remedy="Choose another address in site.toml, or stop what is using it.",
    )
