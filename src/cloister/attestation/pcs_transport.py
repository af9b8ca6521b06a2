"""HTTPS GET for collateral, narrowed to what a hostile network cannot misuse.

TLS is always verified, against the public web's authorities or one file of them given
by the caller; there is no switch. Nothing is read from the environment: no proxy, no
authorities, no key log. Redirects, compression and bodies beyond a stated size are
refused, and a whole exchange has one deadline, however slowly its bytes come.

TLS is not what collateral is believed for: that is Intel's signature, which the caller
checks. It keeps others from seeing which platforms are asked about, and from holding
back what is new.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import certifi
import httpx

from cloister.attestation.pcs_deadline import Deadline
from cloister.errors import (
    ConfigError,
    PlatformError,
    ProtocolError,
    VerificationError,
)

# Intel answers in well under a second; a PCCS that must ask Intel first takes a few.
EXCHANGE_SECONDS = 30.0
_STEP_SECONDS = 10.0

_OK = 200
_REDIRECTS = range(300, 400)
# Nothing for this platform, no longer kept, and PCCS's own "platform unknown".
_UNKNOWN = {404, 410, 461}
_UNAVAILABLE = {429, *range(500, 600)}

_CHECK_ADDRESS = "check the address and the network, or use another PCCS"
_ASK_OPERATOR = "try again later, ask the PCCS's operator, or use another one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a server answered with status 200; nothing in it is believed.

    Attributes:
        url: What was asked for.
        body: The body, byte for byte.
        headers: All values of each header, by its name in lower case.
    """

    url: str
    body: bytes
    headers: Mapping[str, tuple[str, ...]]


class HttpsGetter:
    """Fetches over verified TLS. May be used from any thread.

    Args:
        ca_file: Authorities to believe instead of the public web's, in PEM.
        exchange_seconds: Longest time from asking to the last byte.

    Raises:
        ConfigError: If `ca_file` cannot be read or holds no certificate.
    """

    def __init__(
        self, *, ca_file: Path | None, exchange_seconds: float = EXCHANGE_SECONDS
    ) -> None:
        self._exchange_seconds = exchange_seconds
        self._client = httpx.Client(
            verify=_tls_context(ca_file),
            trust_env=False,
            follow_redirects=False,
            timeout=min(_STEP_SECONDS, exchange_seconds),
            # One connection for each exchange, so that its deadline can end it.
            limits=httpx.Limits(max_keepalive_connections=0),
            # A compressed body has no size until it is too late.
            headers={"Accept-Encoding": "identity", "User-Agent": "cloister"},
        )

    def close(self) -> None:
        """Closes what is open; nothing may be fetched after it."""
        self._client.close()

    def get(self, url: str, *, query: Mapping[str, str], max_bytes: int) -> Reply:
        """Returns the server's answer, if it is a plain success of bounded size.

        Args:
            url: What to ask for; an https address that `check_address` passed.
            query: Its parameters.
            max_bytes: Largest body that is read.

        Raises:
            VerificationError: If the server's certificate does not hold.
            ProtocolError: If the answer is no plain success, is truncated, too large,
                redirected or compressed, or is no HTTP.
            PlatformError: If the server cannot be reached, does not answer in time,
                or says that it has not, or cannot get, what was asked for.
        """
        full = str(httpx.URL(url, params=dict(query)) if query else url)
        with (
            Deadline(self._exchange_seconds) as deadline,
            _our_errors(full, deadline),
            self._client.stream(
                "GET", full, extensions={"trace": deadline.trace}
            ) as response,
        ):
            _check_status(response.status_code, full)
            return Reply(
                url=full,
                body=_body(response, full, max_bytes=max_bytes),
                headers=_headers(response),
            )


def check_address(address: str) -> None:
    """Checks that an address is https, and that nothing but a path follows the host.

    Raises:
        ConfigError: If it is anything else: plain http, with a user, with a query, or
            no address at all.
    """
    try:
        url = httpx.URL(address)
    except (httpx.InvalidURL, TypeError) as error:
        raise _bad_address(address) from error
    extra = url.userinfo or url.query or url.fragment
    if url.scheme != "https" or not url.host or extra:
        raise _bad_address(address)


def _bad_address(address: str) -> ConfigError:
    return ConfigError(
        "address of a collateral service cannot be used",
        code="pcs-address",
        expected="https://HOST[:PORT][/PATH] and nothing else",
        # Without the user part: it may be a password.
        got=repr(address.rpartition("@")[2][:200]),
        remedy="collateral is fetched over verified TLS only",
    )


def _tls_context(ca_file: Path | None) -> ssl.SSLContext:
    # A bare context: the ssl module's ready-made ones read SSLKEYLOGFILE, and the
    # system's authorities would be whatever SSL_CERT_FILE says.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Intel's service and PCCS on older Node.js speak 1.2; it hides nothing secret.
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cafile=ca_file or certifi.where())
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"authorities for the collateral service cannot be read: {ca_file}",
            code="pcs-ca-file",
            expected="certificates in PEM",
            got=type(error).__name__,
            remedy="correct the path; `cloister pccs serve` prints its own",
        ) from error
    return context


@contextlib.contextmanager
def _our_errors(url: str, deadline: Deadline) -> Iterator[None]:
    """Turns httpx's errors into ours, by whose fault they are."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise _timed_out(url, deadline) from error
    except httpx.TransportError as error:
        if deadline.expired:
            raise _timed_out(url, deadline) from error
        raise _failed(url, error) from error
    if deadline.expired:
        raise _timed_out(url, deadline)


def _failed(
    url: str, error: httpx.TransportError
) -> VerificationError | ProtocolError | PlatformError:
    cause = _tls_cause(error)
    if cause is not None:
        return VerificationError(
            f"certificate of the collateral service does not hold: {url}",
            code="pcs-tls",
            expected="a certificate by a known authority, for this host, in date",
            got=cause.verify_message,
            remedy="give its authorities as the CA file, or correct the address",
        )
    if isinstance(error, httpx.ProtocolError):
        return ProtocolError(
            f"answer of the collateral service is truncated or no HTTP: {url}",
            code="pcs-malformed",
            got=str(error)[:200],
            remedy=_ASK_OPERATOR,
        )
    return PlatformError(
        f"collateral service cannot be reached: {url}",
        code="pcs-unreachable",
        got=str(error)[:200] or type(error).__name__,
        remedy=_CHECK_ADDRESS,
    )


def _tls_cause(error: BaseException) -> ssl.SSLCertVerificationError | None:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def _timed_out(url: str, deadline: Deadline) -> PlatformError:
    return PlatformError(
        f"collateral service does not answer in time: {url}",
        code="pcs-timeout",
        expected=f"an answer within {deadline.seconds:g} seconds",
        remedy=_CHECK_ADDRESS,
    )


def _check_status(status: int, url: str) -> None:
    if status == _OK:
        return
    got = f"status {status}"
    if status in _UNKNOWN:
        raise PlatformError(
            f"collateral service has nothing for {url}",
            code="pcs-unknown",
            got=got,
            remedy="the platform is unknown to it, or that evaluation number is not "
            "published; register the platform, or correct the setting",
        )
    if status in _UNAVAILABLE:
        raise PlatformError(
            f"collateral service cannot answer now: {url}",
            code="pcs-unavailable",
            got=got,
            remedy=_ASK_OPERATOR,
        )
    if status in _REDIRECTS:
        raise ProtocolError(
            f"collateral service sends elsewhere: {url}",
            code="pcs-redirect",
            expected="an answer",
            got=got,
            remedy="redirects are not followed; name the final address yourself",
        )
    raise ProtocolError(
        f"collateral service refuses: {url}",
        code="pcs-status",
        expected=f"status {_OK}",
        got=got,
        remedy="is it a PCCS with API version 4? correct the address",
    )


def _body(response: httpx.Response, url: str, *, max_bytes: int) -> bytes:
    if "content-encoding" in response.headers:
        raise ProtocolError(
            f"answer is compressed, which was not asked for: {url}",
            code="pcs-compressed",
            remedy=_ASK_OPERATOR,
        )
    body = bytearray()
    for chunk in response.iter_raw():
        body += chunk
        if len(body) > max_bytes:
            raise ProtocolError(
                f"answer is too large: {url}",
                code="pcs-too-large",
                expected=f"at most {max_bytes} bytes",
                remedy=_ASK_OPERATOR,
            )
    return bytes(body)


def _headers(response: httpx.Response) -> Mapping[str, tuple[str, ...]]:
    # latin-1 reads every byte; who wants a header checks what is in it.
    values: dict[str, tuple[str, ...]] = {}
    for raw_name, raw_value in response.headers.raw:
        name = raw_name.decode("latin-1").lower()
        values[name] = (*values.get(name, ()), raw_value.decode("latin-1"))
    return values
