from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.unit.attestation.pcs_servers import (
    LOOPBACK,
    Script,
    raw_server,
    sends,
)

from cloister.attestation.pcs_transport import HttpsGetter, Reply, check_address
from cloister.attestation.platforms.simulated.pccs_server import (
    provide_tls_certificate,
)
from cloister.errors import (
    CloisterError,
    ConfigError,
    PlatformError,
    ProtocolError,
    VerificationError,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Two: a\r\nx-two: b\r\n\r\nbody"
SHORT_SECONDS = 0.2


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return provide_tls_certificate(
        tmp_path_factory.mktemp("tls"), host=LOOPBACK, at=datetime.now(UTC)
    )


@pytest.fixture(scope="module")
def getter(certificate: Path) -> Iterator[HttpsGetter]:
    getter = HttpsGetter(ca_file=certificate)
    yield getter
    getter.close()


def got(getter: HttpsGetter, address: str) -> Reply:
    return getter.get(f"{address}/path", query={"a": "b"}, max_bytes=1_000)


def refused(getter: HttpsGetter, certificate: Path, script: Script) -> CloisterError:
    with (
        raw_server(certificate, script) as address,
        pytest.raises(CloisterError) as refusal,
    ):
        got(getter, address)
    assert refusal.value.remedy
    return refusal.value


def test_body_and_headers_come_as_they_were_sent(
    getter: HttpsGetter, certificate: Path
) -> None:
    requests: list[bytes] = []

    def script(connection: socket.socket) -> None:
        requests.append(connection.recv(65_536))
        connection.sendall(OK)

    with raw_server(certificate, script) as address:
        reply = got(getter, address)
    assert reply.body == b"body"
    assert reply.headers["x-two"] == ("a", "b")
    assert requests[0].startswith(b"GET /path?a=b HTTP/1.1\r\n")
    assert b"accept-encoding: identity" in requests[0].lower()


def test_a_large_body_in_pieces_comes_whole(
    getter: HttpsGetter, certificate: Path
) -> None:
    body = os.urandom(900)
    chunked = b"".join(
        b"%x\r\n%b\r\n" % (len(piece), piece)
        for piece in (body[i : i + 7] for i in range(0, len(body), 7))
    )
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with raw_server(certificate, sends(head + chunked + b"0\r\n\r\n")) as address:
        assert got(getter, address).body == body


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbody",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"",
        b"220 smtp.example ESMTP\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nbody",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nbody!",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000,
        b"\x00" * 64,
    ],
    ids=str,
)
def test_what_is_truncated_or_no_http_is_refused(
    getter: HttpsGetter, certificate: Path, answer: bytes
) -> None:
    error = refused(getter, certificate, sends(answer))
    assert isinstance(error, ProtocolError)
    assert error.code == "pcs-malformed"


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 1001\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n3e9\r\n",
        b"\r\n",
    ],
    ids=["stated", "chunked", "until the end"],
)
def test_a_body_that_is_too_large_is_refused(
    getter: HttpsGetter, certificate: Path, head: bytes
) -> None:
    answer = b"HTTP/1.1 200 OK\r\n" + head + b"x" * 1_001
    assert refused(getter, certificate, sends(answer)).code == "pcs-too-large"


def test_a_compressed_body_is_refused(getter: HttpsGetter, certificate: Path) -> None:
    answer = OK.replace(b"X-Two", b"Content-Encoding: gzip\r\nX-Two", 1)
    assert refused(getter, certificate, sends(answer)).code == "pcs-compressed"


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (201, ProtocolError, "pcs-status"),
        (204, ProtocolError, "pcs-status"),
        (206, ProtocolError, "pcs-status"),
        (301, ProtocolError, "pcs-redirect"),
        (302, ProtocolError, "pcs-redirect"),
        (307, ProtocolError, "pcs-redirect"),
        (400, ProtocolError, "pcs-status"),
        (401, ProtocolError, "pcs-status"),
        (404, PlatformError, "pcs-unknown"),
        (410, PlatformError, "pcs-unknown"),
        (429, PlatformError, "pcs-unavailable"),
        (461, PlatformError, "pcs-unknown"),
        (500, PlatformError, "pcs-unavailable"),
        (504, PlatformError, "pcs-unavailable"),
    ],
)
def test_every_status_but_success_is_refused_by_name(
    getter: HttpsGetter,
    certificate: Path,
    status: int,
    kind: type[CloisterError],
    code: str,
) -> None:
    # Where a redirect leads there is an answer: nobody asks for it.
    head = (
        f"HTTP/1.1 {status} Whatever\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n"
    )
    error = refused(getter, certificate, sends(head.encode()))
    assert (type(error), error.code) == (kind, code)
    if status not in {301, 302, 307}:
        assert str(status) in error.got


def test_a_server_that_says_nothing_is_given_up(certificate: Path) -> None:
    ended = threading.Event()

    def script(connection: socket.socket) -> None:
        connection.recv(65_536)
        ended.wait(10)

    getter = HttpsGetter(ca_file=certificate, exchange_seconds=SHORT_SECONDS)
    with raw_server(certificate, script) as address:
        with pytest.raises(PlatformError) as refusal:
            got(getter, address)
        ended.set()
    assert refusal.value.code == "pcs-timeout"
    getter.close()


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX: ", OK[:-4]])
def test_a_server_that_dribbles_is_given_up_as_well(
    certificate: Path, head: bytes
) -> None:
    ended = threading.Event()

    def script(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(head.replace(b"Length: 4", b"Length: 999"))
        # Each byte is well within the timeout of a single read.
        while not ended.wait(SHORT_SECONDS / 8):
            connection.sendall(b"x")

    getter = HttpsGetter(ca_file=certificate, exchange_seconds=SHORT_SECONDS)
    with raw_server(certificate, script) as address:
        with pytest.raises(PlatformError) as refusal:
            got(getter, address)
        ended.set()
    assert refusal.value.code == "pcs-timeout"
    getter.close()


def test_a_port_where_nobody_listens_is_the_hosts_trouble(getter: HttpsGetter) -> None:
    with socket.create_server((LOOPBACK, 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(PlatformError) as refusal:
        got(getter, f"https://{LOOPBACK}:{port}")
    assert refusal.value.code == "pcs-unreachable"


def test_a_server_without_tls_is_refused(getter: HttpsGetter) -> None:
    with (
        raw_server(None, sends(OK)) as address,
        pytest.raises(PlatformError) as refusal,
    ):
        got(getter, address)
    assert refusal.value.code == "pcs-unreachable"


def test_a_certificate_of_nobody_known_is_refused(
    certificate: Path, tmp_path: Path
) -> None:
    other = provide_tls_certificate(tmp_path, host=LOOPBACK, at=datetime.now(UTC))
    for ca_file in (None, other):
        getter = HttpsGetter(ca_file=ca_file)
        with (
            raw_server(certificate, sends(OK)) as address,
            pytest.raises(VerificationError) as refusal,
        ):
            got(getter, address)
        assert refusal.value.code == "pcs-tls"
        assert "self-signed" in refusal.value.got
        getter.close()


@pytest.mark.parametrize("days", [-400, 2])
def test_a_certificate_out_of_date_is_refused(tmp_path: Path, days: int) -> None:
    certificate = provide_tls_certificate(
        tmp_path, host=LOOPBACK, at=datetime.now(UTC) + timedelta(days=days)
    )
    getter = HttpsGetter(ca_file=certificate)
    with (
        raw_server(certificate, sends(OK)) as address,
        pytest.raises(VerificationError) as refusal,
    ):
        got(getter, address)
    assert refusal.value.code == "pcs-tls"
    getter.close()


def test_a_certificate_for_another_host_is_refused(
    getter: HttpsGetter, certificate: Path
) -> None:
    # All of 127/8 is this machine; the certificate names one address of it.
    with (
        raw_server(certificate, sends(OK), host="127.0.0.2") as address,
        pytest.raises(VerificationError) as refusal,
    ):
        got(getter, address)
    assert "IP address mismatch" in refusal.value.got


def test_nothing_is_read_from_the_environment(
    certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_log = tmp_path / "keys.log"
    monkeypatch.setenv("SSLKEYLOGFILE", str(key_log))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    # With this the certificate would be believed.
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    given, public = HttpsGetter(ca_file=certificate), HttpsGetter(ca_file=None)
    with raw_server(certificate, sends(OK)) as address:
        assert got(given, address).body == b"body"
    with (
        raw_server(certificate, sends(OK)) as address,
        pytest.raises(VerificationError),
    ):
        got(public, address)
    assert not key_log.exists()
    given.close()
    public.close()


@pytest.mark.parametrize(
    "address",
    [
        "http://pccs.example",
        "HTTP://pccs.example",
        "pccs.example:8081",
        "https://",
        "https:///path",
        "https://user:secret@pccs.example",
        "https://pccs.example?a=b",
        "https://pccs.example#a",
        "ftp://pccs.example",
        "https://pccs.example:port",
        "https://pccs\nexample",
        "",
    ],
)
def test_only_a_plain_https_address_is_accepted(address: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        check_address(address)
    assert refusal.value.code == "pcs-address"
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    "address", ["https://pccs.example", "https://[::1]:8081/path/", "https://10.0.0.1"]
)
def test_an_https_address_is_accepted(address: str) -> None:
    check_address(address)


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_ca_file_that_is_none_is_refused(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as refusal:
        HttpsGetter(ca_file=path)
    assert refusal.value.code == "pcs-ca-file"
