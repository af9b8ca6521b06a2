from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from tests.unit.attestation.pcs_servers import LOOPBACK, ChangingPccs, Clock, Pccs

from cloister.attestation.pcs_transport import HttpsGetter
from cloister.attestation.platforms.simulated.collateral import (
    write_simulated_collateral,
)
from cloister.attestation.platforms.simulated.pccs_server import (
    TLS_CERTIFICATE_FILE,
    TLS_KEY_FILE,
    SimulatedPccsServer,
    provide_tls_certificate,
)
from cloister.attestation.platforms.simulated.root import create_simulated_root
from cloister.errors import ConfigError, PlatformError, StorageError

ROOT_CRL = "/sgx/certification/v4/rootcacrl"


@pytest.fixture(scope="module")
def pccs(tmp_path_factory: pytest.TempPathFactory, at: datetime) -> Iterator[Pccs]:
    root = create_simulated_root(tmp_path_factory.mktemp("server") / "root", at=at)
    write_simulated_collateral(root, at=at)
    running = Pccs(ChangingPccs(root, clock=Clock(at)), root.directory)
    yield running
    running.close()


def root_crl(pccs: Pccs) -> bytes:
    getter = HttpsGetter(ca_file=pccs.ca_file)
    reply = getter.get(f"{pccs.address}{ROOT_CRL}", query={}, max_bytes=10_000)
    getter.close()
    return reply.body


def connect(pccs: Pccs) -> socket.socket:
    port = int(pccs.address.rpartition(":")[2])
    return socket.create_connection((LOOPBACK, port), timeout=10)


def test_clients_that_say_nothing_or_nonsense_disturb_nobody(pccs: Pccs) -> None:
    silent, rude = connect(pccs), connect(pccs)
    rude.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert root_crl(pccs)
    # It hears an alert of TLS, or the end; never an answer.
    assert not rude.recv(1_000).startswith(b"HTTP")
    silent.close()
    rude.close()
    assert root_crl(pccs)


def test_only_tls_1_3_is_spoken(pccs: Pccs) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(pccs.ca_file)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with connect(pccs) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname=LOOPBACK)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD"])
def test_nothing_but_get_is_answered(pccs: Pccs, method: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(pccs.ca_file)
    with (
        connect(pccs) as plain,
        context.wrap_socket(plain, server_hostname=LOOPBACK) as connection,
    ):
        connection.sendall(
            f"{method} {ROOT_CRL} HTTP/1.1\r\nContent-Length: 0\r\n\r\n".encode()
        )
        assert connection.recv(1_000).startswith(b"HTTP/1.1 501")


def test_a_port_in_use_is_refused_by_name(pccs: Pccs) -> None:
    port = int(pccs.address.rpartition(":")[2])
    with pytest.raises(PlatformError) as refusal:
        SimulatedPccsServer(
            pccs.answers, host=LOOPBACK, port=port, certificate=pccs.ca_file
        )
    assert refusal.value.code == "port-unusable"


def test_it_serves_ipv6_as_well(pccs: Pccs, tmp_path: Path) -> None:
    certificate = provide_tls_certificate(tmp_path, host="::1", at=datetime.now(UTC))
    server = SimulatedPccsServer(
        pccs.answers, host="::1", port=0, certificate=certificate
    )
    assert server.address.startswith("https://[::1]:")
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    getter = HttpsGetter(ca_file=certificate)
    reply = getter.get(f"{server.address}{ROOT_CRL}", query={}, max_bytes=10_000)
    assert reply.body == root_crl(pccs)
    getter.close()
    server.stop()
    thread.join()
    server.close()


def test_a_certificate_that_serves_is_kept(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    path = provide_tls_certificate(tmp_path, host=LOOPBACK, at=now)
    before = path.read_bytes()
    for host in (LOOPBACK, "localhost", "::1"):
        assert provide_tls_certificate(tmp_path, host=host, at=now) == path
    assert path.read_bytes() == before
    assert (tmp_path / TLS_KEY_FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("later", [timedelta(days=365), timedelta(days=-1)])
def test_a_certificate_out_of_date_is_made_anew(
    tmp_path: Path, later: timedelta
) -> None:
    now = datetime.now(UTC)
    path = provide_tls_certificate(tmp_path, host=LOOPBACK, at=now)
    before = path.read_bytes()
    provide_tls_certificate(tmp_path, host=LOOPBACK, at=now + later)
    assert path.read_bytes() != before


def test_a_certificate_for_another_host_is_made_anew_and_says_it_is_simulated(
    tmp_path: Path,
) -> None:
    now = datetime.now(UTC)
    path = provide_tls_certificate(tmp_path, host=LOOPBACK, at=now)
    provide_tls_certificate(tmp_path, host="pccs.example", at=now)
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    names = certificate.extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    ).value
    assert x509.DNSName("pccs.example") in names
    assert "SIMULATED" in certificate.subject.rfc4514_string()


@pytest.mark.parametrize("name", [TLS_CERTIFICATE_FILE, TLS_KEY_FILE])
def test_one_file_without_the_other_is_made_anew(tmp_path: Path, name: str) -> None:
    now = datetime.now(UTC)
    path = provide_tls_certificate(tmp_path, host=LOOPBACK, at=now)
    (tmp_path / name).unlink()
    provide_tls_certificate(tmp_path, host=LOOPBACK, at=now)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, tmp_path / TLS_KEY_FILE)


def test_a_damaged_certificate_is_made_anew(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    path = provide_tls_certificate(tmp_path, host=LOOPBACK, at=now)
    path.write_text("damaged")
    provide_tls_certificate(tmp_path, host=LOOPBACK, at=now)
    x509.load_pem_x509_certificate(path.read_bytes())


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    provide_tls_certificate(tmp_path, host=LOOPBACK, at=now)
    (tmp_path / TLS_KEY_FILE).chmod(0o644)
    with pytest.raises(ConfigError) as refusal:
        provide_tls_certificate(tmp_path, host=LOOPBACK, at=now)
    assert refusal.value.code == "simulated-permissions"


def test_a_server_without_its_key_is_refused(pccs: Pccs, tmp_path: Path) -> None:
    path = provide_tls_certificate(tmp_path, host=LOOPBACK, at=datetime.now(UTC))
    (tmp_path / TLS_KEY_FILE).unlink()
    with pytest.raises(StorageError):
        SimulatedPccsServer(pccs.answers, host=LOOPBACK, port=0, certificate=path)
