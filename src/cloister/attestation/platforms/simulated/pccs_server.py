"""The simulated PCCS on a port of its own: HTTPS and nothing else.

For development, like everything in this room: it answers whoever asks, one thread for
each, and its certificate is made here. Its key stays beside the development root's.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl
import sys
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from typing_extensions import override

from cloister.attestation.platforms.simulated.keyfiles import (
    read_file,
    read_key,
    write_new,
    write_new_key,
)
from cloister.attestation.platforms.simulated.pccs import SimulatedPccs
from cloister.errors import CloisterError, PlatformError, StorageError

TLS_CERTIFICATE_FILE = "pccs-tls.pem"
TLS_KEY_FILE = "pccs-tls.key"
# Who connects and says nothing is let go after this.
REQUEST_SECONDS = 10.0

_CERTIFICATE_LIFE = timedelta(days=365)
_RENEW_BEFORE = timedelta(days=1)
_POLL_SECONDS = 0.1
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")

_log = logging.getLogger(__name__)


def provide_tls_certificate(directory: Path, *, host: str, at: datetime) -> Path:
    """Returns the path of a certificate for `host`; makes one unless it is there.

    One that is there stays, so that who was given it as an authority stays connected.

    Args:
        directory: The development root's; the key goes there as well.
        host: Name or address that clients will use.
        at: Now, aware.

    Raises:
        StorageError: If it cannot be written.
        ConfigError: If others may read the key.
    """
    certificate_path = directory / TLS_CERTIFICATE_FILE
    key_path = directory / TLS_KEY_FILE
    if certificate_path.exists() and key_path.exists():
        certificate = _load(certificate_path)
        key = read_key(key_path)
        if certificate is not None and _serves(certificate, key, host=host, at=at):
            return certificate_path
    try:
        certificate_path.unlink(missing_ok=True)
        key_path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"{certificate_path} cannot be replaced",
            code="simulated-unwritable",
            got=error.strerror or "an error",
        ) from error
    key = ec.generate_private_key(ec.SECP256R1())
    write_new_key(key_path, key)
    write_new(certificate_path, _issue(key, host=host, at=at))
    return certificate_path


class SimulatedPccsServer:
    """Serves a `SimulatedPccs` over TLS 1.3 until it is stopped.

    Args:
        pccs: What answers.
        host: Name or address to listen at.
        port: Port to listen at; 0 for any free one.
        certificate: Made by `provide_tls_certificate`, its key beside it.

    Raises:
        PlatformError: If the port cannot be used.
        StorageError: If the certificate or its key cannot be used.
    """

    def __init__(
        self, pccs: SimulatedPccs, *, host: str, port: int, certificate: Path
    ) -> None:
        self._host = host
        context = _tls_context(certificate)
        try:
            self._server = _HttpsServer(host, port, pccs=pccs, context=context)
        except OSError as error:
            raise PlatformError(
                f"cannot listen at {host}:{port}",
                code="port-unusable",
                got=error.strerror or "an error",
                remedy="choose another address with --listen",
            ) from error

    @property
    def address(self) -> str:
        """Where it answers, as a client's setting."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"https://{host}:{self._server.server_address[1]}"

    def serve(self) -> None:
        """Answers until `stop` is called from another thread, or an exception."""
        self._server.serve_forever(poll_interval=_POLL_SECONDS)

    def stop(self) -> None:
        """Ends `serve` in another thread; returns when it has ended."""
        self._server.shutdown()

    def close(self) -> None:
        """Frees the port."""
        self._server.server_close()


class _HttpsServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(
        self, host: str, port: int, *, pccs: SimulatedPccs, context: ssl.SSLContext
    ) -> None:
        self.pccs = pccs
        self._context = context
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    @override
    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        # The handshake is the handler thread's: nobody waits for a slow client.
        return (
            self._context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            ),
            address,
        )

    @override
    def handle_error(self, request: object, client_address: object) -> None:
        # A client that hangs up or does not trust us; what it sent is not worth more.
        _log.debug("request failed: %s", type(sys.exception()).__name__)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "cloister-simulated-pccs"
    sys_version = ""
    timeout = REQUEST_SECONDS
    # Head and body are two writes: without this the second waits 40 ms for a client's
    # delayed acknowledgement of the first.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if not isinstance(self.server, _HttpsServer):
            raise TypeError("not a server of ours")
        answer = self.server.pccs.answer(self.path)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    @override
    def log_message(self, format: str, *args: object) -> None:
        # %r: a request line is anybody's, control characters and all.
        _log.info("%s %r", self.client_address[0], format % args)


def _tls_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    key = certificate.with_name(TLS_KEY_FILE)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise StorageError(
            f"{certificate} or {key} cannot be used",
            code="simulated-damaged",
            got=type(error).__name__,
            remedy="remove both; they are made anew",
        ) from error
    return context


def _load(path: Path) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificate(read_file(path))
    except (ValueError, CloisterError):
        return None


def _serves(
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    *,
    host: str,
    at: datetime,
) -> bool:
    names = certificate.extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    ).value
    end = certificate.not_valid_after_utc - _RENEW_BEFORE
    return (
        certificate.public_key() == key.public_key()
        and _general_name(host) in names
        and certificate.not_valid_before_utc <= at <= end
    )


def _issue(key: ec.EllipticCurvePrivateKey, *, host: str, at: datetime) -> bytes:
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, "SIMULATED PCCS, Dev only")]
    )
    names = dict.fromkeys((host, *_LOCAL_NAMES))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - timedelta(minutes=5))
        .not_valid_after(at + _CERTIFICATE_LIFE)
        .add_extension(
            x509.SubjectAlternativeName([_general_name(it) for it in names]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
            critical=False,
        )
        .sign(key, SHA256())
    )
    return certificate.public_bytes(Encoding.PEM)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
