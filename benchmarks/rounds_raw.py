"""The bare minimum that a round could take: the same bytes over plain TLS sockets.

    rounds_raw.py server DIR PORT BYTES | worker DIR PORT BYTES

The same topology: a server and two workers, each a process of its own; TLS 1.3 with
certificates on P-256 on both sides. Each worker sends its bytes and receives the
server's; the server sends when it has them from both. Nothing is computed, checked,
recorded or copied that need not be; each side has its buffers from the beginning.
"""

from __future__ import annotations

import argparse
import datetime as dt
import ipaddress
import json
import socket
import ssl
import sys
import threading
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

WORKERS = 2
_HOST = "127.0.0.1"


def write_certificates(directory: Path) -> None:
    """Writes a CA, and a key and certificate for a server and for the workers.

    Also what the peer benchmark needs: an authority in a file of its own.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = _name("benchmark CA")
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()),
            critical=False,
        )
    )
    (directory / "ca.crt").write_bytes(
        ca.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM)
    )
    for name in ("server", "worker"):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(_name(name), ca_name, key.public_key())
            .add_extension(
                x509.SubjectAlternativeName(
                    [
                        x509.DNSName("localhost"),
                        x509.IPAddress(ipaddress.ip_address(_HOST)),
                    ]
                ),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
                critical=False,
            )
            .sign(ca_key, hashes.SHA256())
        )
        (directory / f"{name}.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
        (directory / f"{name}.key").write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now, day = dt.datetime.now(dt.UTC), dt.timedelta(days=1)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - day,
        not_valid_after=now + day,
    )


def _context(directory: Path, name: str) -> ssl.SSLContext:
    server = name == "server"
    context = ssl.SSLContext(
        ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT
    )
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(directory / f"{name}.crt", directory / f"{name}.key")
    context.load_verify_locations(directory / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _buffer(size: int) -> memoryview:
    """Returns a buffer whose pages are there: the first round is as fast as others."""
    return memoryview(bytearray(b"\x5a" * size))


def _receive(connection: ssl.SSLSocket, into: memoryview) -> None:
    at = 0
    while at < len(into):
        got = connection.recv_into(into[at:])
        if not got:
            raise EOFError
        at += got


def _say(event: str, **values: object) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


class Server:
    """Sends its bytes when it has those of all workers.

    Args:
        size: Bytes in each direction.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._model = _buffer(size)
        self._began = time.perf_counter()
        self._number = 0
        self._barrier = threading.Barrier(WORKERS, action=self._complete)

    def _complete(self) -> None:
        now = time.perf_counter()
        self._number += 1
        _say("round", round=self._number, seconds=now - self._began)
        self._began = now

    def attend(self, connection: ssl.SSLSocket) -> None:
        """Does all rounds of one worker."""
        received = _buffer(self._size)
        try:
            while True:
                _receive(connection, received)
                self._barrier.wait()
                connection.sendall(self._model)
        except (EOFError, OSError, threading.BrokenBarrierError):
            self._barrier.abort()


def serve(directory: Path, port: int, size: int) -> None:
    """Serves until the workers go."""
    context, server = _context(directory, "server"), Server(size)
    threads = []
    with socket.create_server((_HOST, port)) as listening:
        _say("listening")
        for _ in range(WORKERS):
            plain, _address = listening.accept()
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            secured = context.wrap_socket(plain, server_side=True)
            threads.append(threading.Thread(target=server.attend, args=(secured,)))
            threads[-1].start()
    for thread in threads:
        thread.join()


def work(directory: Path, port: int, size: int) -> None:
    """Does as many rounds as each line of standard input says."""
    update, received = _buffer(size), _buffer(size)
    with socket.create_connection((_HOST, port)) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = _context(directory, "worker")
        with context.wrap_socket(plain, server_hostname="localhost") as secured:
            _say("at-gate", cipher=secured.cipher())
            for line in sys.stdin:
                for _ in range(int(line)):
                    secured.sendall(update)
                    _receive(secured, received)
                _say("at-gate")


def main() -> None:
    """Runs one process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=("server", "worker"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("size", type=int)
    options = parser.parse_args()
    act = serve if options.role == "server" else work
    act(options.directory, options.port, options.size)


if __name__ == "__main__":
    main()
