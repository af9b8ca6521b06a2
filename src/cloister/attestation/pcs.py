"""Collateral from Intel's PCS or a PCCS, API version 4, with a cache on disk.

`docs/spec/collateral.md` has the rules. In short: nothing expired is ever returned,
whoever is unreachable; after an hour collateral is fetched anew, for a platform may
have been revoked meanwhile, and until that works the old one serves to its last day; a
revocation list with a lower number than one seen is refused; only what is genuine under
the trust root is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from cloister.attestation.checked_collateral import (
    CheckedCollateral,
    checked_collateral,
)
from cloister.attestation.collateral import Collateral
from cloister.attestation.collateral_source import PckCa
from cloister.attestation.pcs_cache import (
    CacheKey,
    CollateralCache,
    Release,
    evaluation_numbers,
    warn_unusable,
)
from cloister.attestation.pcs_freshness import Attempts, Usable
from cloister.attestation.pcs_messages import Replies, collateral_from_replies
from cloister.attestation.pcs_transport import HttpsGetter, check_address
from cloister.attestation.reports import Tee
from cloister.attestation.revocation_list import MAX_CRL_BYTES
from cloister.attestation.signed_json import MAX_DOCUMENT_BYTES
from cloister.attestation.trust_root import TrustRoot
from cloister.errors import CloisterError, VerificationError

# Hexadecimal, as a PCCS sends the root's list.
_MAX_CRL_REPLY_BYTES = 2 * MAX_CRL_BYTES + 2

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollateralService:
    """Where a PCS or PCCS is.

    Attributes:
        address: ``https://HOST[:PORT][/PATH]``, without ``/sgx/certification``.
        root_crl_address: Where the root CA CRL is; None for a PCCS's own route.

    Raises:
        ConfigError: If an address is not https, or has more in it.
    """

    address: str
    root_crl_address: str | None = None

    def __post_init__(self) -> None:
        """Checks both addresses."""
        check_address(self.address)
        if self.root_crl_address is not None:
            check_address(self.root_crl_address)


# Intel's own has no route for the root's list; its certificate host has the file, under
# the certificate's name.
INTEL_PCS = CollateralService(
    address="https://api.trustedservices.intel.com",
    root_crl_address="https://certificates.trustedservices.intel.com/IntelSGXRootCA.der",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PcsSettings:
    """How collateral is fetched.

    Attributes:
        service: From where.
        ca_file: Authorities of the service's TLS certificate, in PEM; None for the
            public web's.
        release: "standard" gives operators time to update; "early" has what was
            published today; a number asks for exactly that TCB evaluation number.
        minimum_evaluation_number: What is below is refused, whoever sends it.
    """

    service: CollateralService
    ca_file: Path | None = None
    release: Release = "standard"
    minimum_evaluation_number: int = 0


class PcsClient:
    """A `CollateralSource` that asks a PCS or PCCS. May be used from any thread.

    Args:
        settings: How to fetch.
        root: The root under which collateral must be genuine.
        cache_directory: This node's own.
        clock: Returns the time, aware.

    Raises:
        ConfigError: If the CA file cannot be used.
        StorageError: If the cache directory cannot be made.
    """

    def __init__(
        self,
        settings: PcsSettings,
        *,
        root: TrustRoot,
        cache_directory: Path,
        clock: Callable[[], datetime],
    ) -> None:
        self._settings = settings
        self._root = root
        self._clock = clock
        self._cache = CollateralCache(cache_directory)
        self._getter = HttpsGetter(ca_file=settings.ca_file)
        # One for each platform family that a genuine quote was shown of.
        self._attempts: dict[CacheKey, Attempts] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes what is open; nothing may be asked for after it."""
        self._getter.close()

    def collateral_for(self, *, tee: Tee, fmspc: str, ca: PckCa) -> Collateral:
        """Returns genuine collateral that is in date, from the cache or the service.

        Raises:
            VerificationError: If the service sends what is not genuine, expired, for
                another platform, below the minimum, or older than what was seen; or
                if its TLS certificate does not hold.
            ProtocolError: If its answers are malformed.
            PlatformError: If it cannot be reached, or has nothing for the platform.
            StorageError: If the cache cannot be written.
            ValueError: If `fmspc` is not 12 hex digits; a bug of the caller.
        """
        key = CacheKey(
            tee=tee, fmspc=fmspc.upper(), ca=ca, release=self._settings.release
        )
        attempts = self._attempts.setdefault(key, Attempts())
        now = self._clock()
        kept = self._kept(key, now)
        # Who has something in date waits for nobody; who has nothing, for the one that
        # is fetching it.
        if kept is None:
            attempts.lock.acquire()
        elif not kept.due(now) or not attempts.lock.acquire(blocking=False):
            return kept.checked.collateral
        try:
            return self._renewed(key, attempts)
        finally:
            attempts.lock.release()

    def _renewed(self, key: CacheKey, attempts: Attempts) -> Collateral:
        """Returns what another caller fetched meanwhile, or fetches it."""
        now = self._clock()
        kept = self._kept(key, now)
        if kept is not None and not kept.due(now):
            return kept.checked.collateral
        if (failure := attempts.fresh_failure(now)) is not None:
            if kept is None:
                raise failure.with_traceback(None)
            return kept.checked.collateral
        try:
            fetched = self._fetched(key, now)
            _check_not_older(fetched, None if kept is None else kept.checked)
        except CloisterError as error:
            attempts.failed_at, attempts.failure = now, error
            if kept is None:
                raise
            # What is kept has passed every check at this very time. A service that
            # fails or lies ahead of its expiry must not be able to stop anybody.
            _log.warning(
                "collateral %s stays until %s, for it cannot be refreshed: %s",
                key.file_name,
                kept.checked.not_after.isoformat(),
                error,
            )
            return kept.checked.collateral
        attempts.failed_at = attempts.failure = None
        self._cache.record_numbers(fetched.crl_numbers)
        self._cache.store(key, fetched.collateral, at=now)
        _log.info(
            "collateral %s fetched, valid until %s",
            key.file_name,
            fetched.not_after.isoformat(),
        )
        return fetched.collateral

    def _kept(self, key: CacheKey, now: datetime) -> Usable | None:
        kept = self._cache.load(key)
        if kept is None:
            return None
        try:
            checked = self._checked(kept.collateral, now)
        except VerificationError as error:
            warn_unusable(key, str(error))
            return None
        return Usable(checked=checked, fetched_at=kept.fetched_at)

    def _fetched(self, key: CacheKey, now: datetime) -> CheckedCollateral:
        collateral = collateral_from_replies(self._replies(key))
        key.check_belongs(collateral)
        return self._checked(collateral, now)

    def _checked(self, collateral: Collateral, now: datetime) -> CheckedCollateral:
        checked = checked_collateral(collateral, root=self._root, at=now)
        # Only now: numbers of lists that nobody signed say nothing.
        self._cache.check_numbers(checked.crl_numbers)
        minimum = self._settings.minimum_evaluation_number
        if min(evaluation_numbers(collateral)) < minimum:
            raise VerificationError(
                "collateral is of an older release than is accepted",
                code="collateral-evaluation-number",
                expected=f"TCB evaluation number {minimum} or higher",
                got=" and ".join(map(str, evaluation_numbers(collateral))),
                remedy="ask for the release 'early', or lower the minimum",
            )
        return checked

    def _replies(self, key: CacheKey) -> Replies:
        service = self._settings.service
        base = service.address.rstrip("/")
        release: Mapping[str, str] = (
            {"tcbEvaluationDataNumber": str(key.release)}
            if isinstance(key.release, int)
            else {"update": key.release}
        )
        certification = f"{base}/sgx/certification/v4"
        return Replies(
            tcb_info=self._getter.get(
                f"{base}/{key.tee}/certification/v4/tcb",
                query={"fmspc": key.fmspc, **release},
                max_bytes=MAX_DOCUMENT_BYTES,
            ),
            qe_identity=self._getter.get(
                f"{base}/{key.tee}/certification/v4/qe/identity",
                query=release,
                max_bytes=MAX_DOCUMENT_BYTES,
            ),
            pck_crl=self._getter.get(
                f"{certification}/pckcrl",
                query={"ca": key.ca, "encoding": "der"},
                max_bytes=_MAX_CRL_REPLY_BYTES,
            ),
            root_ca_crl=self._getter.get(
                service.root_crl_address or f"{certification}/rootcacrl",
                query={},
                max_bytes=_MAX_CRL_REPLY_BYTES,
            ),
        )


def _check_not_older(
    fetched: CheckedCollateral, cached: CheckedCollateral | None
) -> None:
    """Checks that what came is not a replay of what the kept collateral replaced.

    CRL numbers do not show it: most of Intel's news are in the other two documents.
    """
    if cached is None:
        return
    new, old = fetched.collateral, cached.collateral
    for what, got, seen in (
        ("TCB info", new.tcb_info.issue_date, old.tcb_info.issue_date),
        ("QE identity", new.qe_identity.issue_date, old.qe_identity.issue_date),
    ):
        if got < seen:
            raise VerificationError(
                f"{what} is older than what was seen",
                code="collateral-rollback",
                expected=f"issued {seen.isoformat()} or later",
                got=got.isoformat(),
                remedy="the service, or who stands between, holds back what is new",
                step=4,
            )
