"""What a policy can say: the plan's ``[policy.ROLE]`` table, or a file of its own.

Closed by default: a field that is left out asks for the strictest thing it can ask for,
and whatever accepts more says so by name. A policy that accepts nothing, or in which a
setting would be ignored, is refused when it is made. `docs/spec/policy.md` explains
every field; appraisal is in `policy`.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Literal

import cbor2
import msgspec
from msgspec import Meta

from cloister.attestation.reference_values import (
    TDX_MEASUREMENT_HEX,
    Reference,
    SgxExactReference,
    SgxReference,
    TdxReference,
    require_hex,
)
from cloister.attestation.reports import Tee
from cloister.attestation.tcb_status import TCB_STATUSES, TcbStatus
from cloister.errors import ConfigError

# Those for which `tcb_grace_days` must say how old the platform's level may be.
# A domain that was launched on an outdated module is one of them until relaunched.
OUT_OF_DATE: frozenset[str] = frozenset(
    {
        "OutOfDate",
        "OutOfDateConfigurationNeeded",
        "TDRelaunchAdvised",
        "TDRelaunchAdvisedConfigurationNeeded",
    }
)

NO_SERVICE_TD = "0" * TDX_MEASUREMENT_HEX
PLATFORM_ID_HEX = 32
# A hundred years: more is a slip of the finger, and dates stay within their range.
MAX_GRACE_DAYS = 36_525
MAX_EVALUATION_NUMBER = 2**32 - 1

_ROOT = re.compile(r"hardware|(?:preproduction|simulated):sha256:[0-9a-f]{64}")
# What collateral may name (`signed_json.AdvisoryId`).
_ADVISORY = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASH_LABEL = "cloister policy 1"


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one role's evidence must be, exactly as `[policy.ROLE]` in the plan.

    Attributes:
        root: "hardware" for Intel's root and no other; "preproduction:sha256:<hex>" for
            another root of Intel's, "simulated:sha256:<hex>" for a development root.
        sgx: Enclaves that are accepted.
        sgx_exact: Enclaves in the meaning of ``dynamic_config.json``.
        tdx: Trust domains that are accepted.
        tcb_statuses: Statuses that are accepted, in Intel's spelling.
        accepted_advisories: Advisories that a platform may be open to; "any" for all.
            Every advisory of the evidence must be listed, whatever its status.
        tcb_grace_days: How many days after its TCB level's date an out-of-date platform
            is still accepted; required with, and only with, an out-of-date status.
        min_tcb_evaluation_number: The lowest number of Intel's collateral that counts.
        debug: "accepted-insecurely" for environments whose host can look inside.
        sept_ve_disable: "any" for trust domains that the host can inject exceptions
            into by taking pages away.
        mrservicetd: Service TDs that may be bound; only zeros, none, by default.
        platforms: PPIDs or platform instance IDs that are accepted; "any" for all.
            Left out it means any platform of that root, and only where it is simulated.
        legacy_certificates: "accepted" for other makers' certificates that hold a bare
            quote over their key and no claims, as those of Gramine before 1.8.

    Raises:
        ConfigError: If a value is malformed, nothing would be accepted, or a setting
            would be ignored.
    """

    root: str
    sgx: tuple[SgxReference, ...] = ()
    sgx_exact: tuple[SgxExactReference, ...] = ()
    tdx: tuple[TdxReference, ...] = ()
    tcb_statuses: tuple[TcbStatus, ...] = ("UpToDate",)
    accepted_advisories: tuple[str, ...] | Literal["any"] = ()
    tcb_grace_days: Annotated[int, Meta(ge=0, le=MAX_GRACE_DAYS)] | None = None
    min_tcb_evaluation_number: Annotated[int, Meta(ge=0, le=MAX_EVALUATION_NUMBER)] = 0
    debug: Literal["refused", "accepted-insecurely"] = "refused"
    sept_ve_disable: Literal["required", "any"] = "required"
    mrservicetd: tuple[str, ...] = (NO_SERVICE_TD,)
    platforms: tuple[str, ...] | Literal["any"] | None = None
    legacy_certificates: Literal["refused", "accepted"] = "refused"

    def __post_init__(self) -> None:
        """Refuses what is malformed, accepts nothing, or would be ignored."""
        _check_root(self.root)
        _check_references(self)
        _check_tcb(self)
        _check_rules(self)
        _check_trust_domain_rules(self)
        _check_platforms(self)

    def references(self, tee: Tee) -> tuple[Reference, ...]:
        """Returns what is accepted of one kind of environment; one must match."""
        return self.tdx if tee == "tdx" else (*self.sgx, *self.sgx_exact)


def policy_sha256(policy: Policy) -> str:
    """Returns the hash of everything a policy says, as 64 lower-case hex digits.

    Lists are sets: order and repetition change neither what is accepted nor the hash.
    """
    # Built from the struct itself: a field added later is in the hash by itself.
    fields = {name: _as_set(getattr(policy, name)) for name in policy.__struct_fields__}
    return hashlib.sha256(_canonical([_HASH_LABEL, fields])).hexdigest()


def check_platform_ids(platforms: tuple[str, ...], *, code: str) -> None:
    """Checks that each is written as a PPID or a platform instance ID is.

    Args:
        platforms: What a list of platforms holds.
        code: Code of the error.

    Raises:
        ConfigError: If one is not.
    """
    for platform in platforms:
        if re.fullmatch(f"[0-9a-f]{{{PLATFORM_ID_HEX}}}", platform) is None:
            raise ConfigError(
                "platforms holds something else",
                code=code,
                expected=f"{PLATFORM_ID_HEX} lower-case hex digits",
                got=repr(platform[:200]),
            )


def _as_set(value: object) -> object:
    if isinstance(value, tuple):
        return sorted({_canonical(entry) for entry in value})
    return value


def _canonical(value: object) -> bytes:
    return cbor2.dumps(msgspec.to_builtins(value), canonical=True)


def _check_root(root: str) -> None:
    if _ROOT.fullmatch(root) is None:
        raise ConfigError(
            "policy does not name a trust root",
            code="policy-root",
            expected="hardware, or simulated:sha256:<64 lower-case hex digits>, or "
            "preproduction:sha256:<64 lower-case hex digits>",
            got=repr(root[:200]),
        )


def _check_references(policy: Policy) -> None:
    if not (policy.sgx or policy.sgx_exact or policy.tdx):
        raise ConfigError(
            "policy accepts nothing",
            code="policy-empty",
            expected="at least one measurement under sgx or tdx",
            remedy="`cloister policy from-measurements PLAN` writes what a node here "
            "will measure",
        )


def _check_tcb(policy: Policy) -> None:
    unknown = set(policy.tcb_statuses) - set(TCB_STATUSES)
    if unknown or not policy.tcb_statuses:
        raise ConfigError(
            "tcb_statuses does not list statuses that can be accepted",
            code="policy-tcb-statuses",
            expected=f"some of {', '.join(TCB_STATUSES)}",
            got=", ".join(sorted(map(repr, unknown))) or "an empty list",
        )
    if bool(OUT_OF_DATE & set(policy.tcb_statuses)) != (
        policy.tcb_grace_days is not None
    ):
        raise ConfigError(
            "tcb_grace_days and an out-of-date status belong together",
            code="policy-grace",
            expected="both OutOfDate in tcb_statuses and tcb_grace_days, or neither",
            got="no tcb_grace_days"
            if policy.tcb_grace_days is None
            else "no out-of-date status in tcb_statuses",
            remedy="say how many days after its TCB level's date an out-of-date "
            "platform is still accepted",
        )
    _check_range("tcb_grace_days", policy.tcb_grace_days, MAX_GRACE_DAYS)
    _check_range(
        "min_tcb_evaluation_number",
        policy.min_tcb_evaluation_number,
        MAX_EVALUATION_NUMBER,
    )
    if policy.accepted_advisories == "any":
        return
    for advisory in policy.accepted_advisories:
        if _ADVISORY.fullmatch(advisory) is None or advisory == "any":
            raise ConfigError(
                "accepted_advisories holds something else",
                code="policy-advisory",
                expected='identifiers like "INTEL-SA-00615", or "any" for all',
                got=repr(advisory[:200]),
            )


def _check_range(name: str, number: int | None, maximum: int) -> None:
    if number is not None and not 0 <= number <= maximum:
        raise ConfigError(
            f"{name} is out of range",
            code="policy-range",
            expected=f"0 to {maximum}",
            got=str(number),
        )


def _check_rules(policy: Policy) -> None:
    for name, known in _RULES.items():
        given = getattr(policy, name)
        if given not in known:
            raise ConfigError(
                f"{name} is no rule",
                code="policy-rule",
                expected=" or ".join(known),
                got=repr(given),
            )


def _check_trust_domain_rules(policy: Policy) -> None:
    if not policy.mrservicetd:
        raise ConfigError(
            "mrservicetd accepts nothing",
            code="policy-empty",
            expected="96 zeros for no service TD, or the hashes of those accepted",
        )
    for digest in policy.mrservicetd:
        require_hex(digest, TDX_MEASUREMENT_HEX, "mrservicetd")
    if not policy.tdx:
        for name in ("sept_ve_disable", "mrservicetd"):
            if getattr(policy, name) != _TDX_DEFAULTS[name]:
                raise ConfigError(
                    f"{name} would be ignored: the policy accepts no trust domain",
                    code="policy-ignored",
                    expected=f"{name} only beside tdx",
                )


_RULES = {
    "debug": ("refused", "accepted-insecurely"),
    "sept_ve_disable": ("required", "any"),
    "legacy_certificates": ("refused", "accepted"),
}
_TDX_DEFAULTS: dict[str, object] = {
    "sept_ve_disable": "required",
    "mrservicetd": (NO_SERVICE_TD,),
}


def _check_platforms(policy: Policy) -> None:
    if policy.platforms == "any":
        return
    # Whoever holds a development root's key makes platforms as he likes: a list of
    # them would protect nothing, so only real machines must be named.
    if policy.platforms is None and policy.root.startswith("simulated:"):
        return
    if not policy.platforms:
        raise ConfigError(
            "policy does not say on which platforms",
            code="policy-platforms",
            expected='PPIDs or platform instance IDs, or "any" for every platform '
            "under that root",
            got="no platforms" if policy.platforms is None else "an empty list",
            remedy="`cloister quote verify` prints both of a machine's quote",
        )
    check_platform_ids(policy.platforms, code="policy-platforms")
