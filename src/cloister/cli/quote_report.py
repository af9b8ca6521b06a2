"""What `cloister quote` shows: for machines as JSON, for people as lines."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from cloister.attestation.certificates import parse_certificate
from cloister.attestation.claims import Claims
from cloister.attestation.evidence import Evidence
from cloister.attestation.pck_extension import PckExtension, parse_pck_extension
from cloister.attestation.pem import split_pem_chain
from cloister.attestation.policy import Check, Policy, policy_sha256
from cloister.attestation.reports import SgxAttributes, TdAttributes
from cloister.cli.output import Json
from cloister.cli.quote_file import Layout
from cloister.errors import AppraisalError, VerificationError

Outcome = Check | AppraisalError

# As `attestation.verify` numbers them; genuine means that every one of them was done.
STEPS = (
    (1, "format"),
    (2, "PCK certificate chain"),
    (3, "revocation"),
    (4, "collateral signatures and dates"),
    (5, "collateral is for this platform"),
    (6, "TDX module"),
    (7, "QE report"),
    (8, "QE identity"),
    (9, "quote signature"),
    (10, "TCB level"),
)
TDX_MODULE_STEP = 6
_LAYOUTS: Mapping[Layout, str] = {
    "interoperable": "interoperable: claims name its key",
    "legacy": "LEGACY: a bare quote over its key, no claims",
}
_SHOWN_ATTRIBUTES = {
    SgxAttributes: ("initialised", "mode64", "provision_key", "einit_token_key", "kss"),
    TdAttributes: (
        "sept_ve_disable",
        "migratable",
        "protection_keys",
        "key_locker",
        "perfmon",
    ),
}


def claims_object(claims: Claims) -> Json:
    """Returns what genuine evidence says, as machines read it."""
    return {
        "genuine": True,
        "tee": claims.tee,
        "quote_version": claims.quote_version,
        "tcb_status": claims.tcb_status,
        "tcb_date": f"{claims.tcb_date:%Y-%m-%dT%H:%M:%SZ}",
        "tcb_evaluation_number": claims.tcb_evaluation_number,
        "advisory_ids": sorted(claims.advisory_ids),
        "debug": claims.debug,
        "simulated": claims.simulated,
        "root": claims.root_name,
        "fmspc": claims.fmspc,
        "ppid": claims.ppid,
        "platform_instance_id": claims.platform_instance_id,
        "sgx_type": claims.sgx_type,
        "dynamic_platform": claims.dynamic_platform,
        "cached_keys": claims.cached_keys,
        "smt_enabled": claims.smt_enabled,
        "measurements": _measurements(dataclasses.asdict(claims.measurements)),
        "attributes": _attributes(claims.attributes),
        "report_data": claims.report_data.hex(),
        "verified_at": int(claims.verified_at.timestamp()),
        "not_after": int(claims.not_after.timestamp()),
        "checks": [
            {"step": number, "name": name}
            for number, name in STEPS
            if number != TDX_MODULE_STEP or claims.tee == "tdx"
        ],
    }


def refusal_object(refusal: VerificationError) -> Json:
    """Returns why evidence is not genuine, as machines read it."""
    return {
        "genuine": False,
        "error": {
            "code": refusal.code,
            "step": refusal.step,
            "message": refusal.what,
            "expected": refusal.expected,
            "got": refusal.got,
            "remedy": refusal.remedy,
        },
    }


def appraisal_object(policy: Policy, outcomes: Sequence[Outcome]) -> Json:
    """Returns the outcome of every check of a policy, as machines read it."""
    return {
        "accepted": all(isinstance(it, Check) for it in outcomes),
        "policy_sha256": policy_sha256(policy),
        "checks": [_outcome(it) for it in outcomes],
    }


def claims_text(
    claims: Claims, outcomes: Sequence[Outcome] | None, *, layout: Layout | None
) -> list[str]:
    """Returns what genuine evidence says, and how it was carried, in words."""
    where = (
        f"SIMULATED, under {claims.root_name}: nothing in it is confidential"
        if claims.simulated
        else "hardware, under Intel's root"
    )
    lines = [
        f"GENUINE: {where}",
        *_table(
            {
                "what": f"{claims.tee.upper()} quote, version {claims.quote_version}",
                **_certificate(layout),
                "tcb status": f"{claims.tcb_status}, "
                f"level of {claims.tcb_date:%Y-%m-%d}",
                "advisories": ", ".join(sorted(claims.advisory_ids)) or "none",
                "debug": "ON: the host can look inside" if claims.debug else "off",
                "fmspc": claims.fmspc,
                "ppid": claims.ppid,
                "instance": claims.platform_instance_id or "not stated",
                **_measurements(dataclasses.asdict(claims.measurements)),
                "report_data": claims.report_data.hex(),
                "valid until": f"{claims.not_after:%Y-%m-%d %H:%M:%SZ}",
            }
        ),
        "",
    ]
    if outcomes is None:
        return [*lines, "Whether it is WANTED was not asked: give --policy."]
    accepted = all(isinstance(it, Check) for it in outcomes)
    return [
        *lines,
        "ACCEPTED by the policy:" if accepted else "REFUSED by the policy:",
        *(
            f"  ok      {it.code}: {it.reason}"
            if isinstance(it, Check)
            else f"  REFUSED {it.code}: {it.what}"
            for it in outcomes
        ),
    ]


def evidence_object(evidence: Evidence, *, layout: Layout | None) -> Json:
    """Returns what an unverified quote says, as machines read it."""
    platform = _platform(evidence)
    return {
        "verified": False,
        "certificate_layout": layout,
        "tee": evidence.tee,
        "quote_version": evidence.version,
        "debug": evidence.report.attributes.debug,
        "fmspc": None if platform is None else platform.fmspc.hex().upper(),
        "ppid": None if platform is None else platform.ppid.hex(),
        "platform_instance_id": None
        if platform is None or platform.platform_instance_id is None
        else platform.platform_instance_id.hex(),
        "measurements": _report_measurements(evidence),
        "attributes": _attributes(evidence.report.attributes),
        "report_data": evidence.report.report_data.hex(),
    }


def evidence_text(evidence: Evidence, *, layout: Layout | None) -> list[str]:
    """Returns what an unverified quote says, in words."""
    platform = _platform(evidence)
    return [
        "NOT VERIFIED: anybody can write this.",
        *_table(
            {
                "what": f"{evidence.tee.upper()} quote, version {evidence.version}",
                **_certificate(layout),
                "debug": "on" if evidence.report.attributes.debug else "off",
                "fmspc": "unreadable"
                if platform is None
                else platform.fmspc.hex().upper(),
                "ppid": "unreadable" if platform is None else platform.ppid.hex(),
                **_report_measurements(evidence),
                "report_data": evidence.report.report_data.hex(),
            }
        ),
        "",
        "`cloister quote verify` says whether it is genuine.",
    ]


def _certificate(layout: Layout | None) -> dict[str, str]:
    """Returns the row on the certificate, where the quote came in one."""
    return {} if layout is None else {"certificate": _LAYOUTS[layout]}


def _outcome(outcome: Outcome) -> Json:
    if isinstance(outcome, Check):
        return {"code": outcome.code, "passed": True, "reason": outcome.reason}
    return {
        "code": outcome.code,
        "passed": False,
        "reason": outcome.what,
        "expected": outcome.expected,
        "got": outcome.got,
        "remedy": outcome.remedy,
    }


def _platform(evidence: Evidence) -> PckExtension | None:
    """Returns the platform that the quote's certificate names, if that is readable."""
    try:
        leaf = split_pem_chain(evidence.pck_chain_pem, step=2)[0]
        extension = parse_certificate(leaf, step=2).body.sgx_extension
        return None if extension is None else parse_pck_extension(extension)
    except VerificationError:
        # Shown, not judged: the rest of the quote is still worth seeing.
        return None


def _report_measurements(evidence: Evidence) -> dict[str, str | int | None]:
    report = evidence.report
    return _measurements(
        {
            field.name: getattr(report, field.name)
            for field in dataclasses.fields(report)
            if field.name not in {"attributes", "report_data"}
        }
    )


def _measurements(values: Mapping[str, object]) -> dict[str, str | int | None]:
    """Returns measurements with bit fields and bytes in hexadecimal."""
    shown: dict[str, str | int | None] = {}
    for name, value in values.items():
        match value:
            case bytes():
                shown[name] = value.hex()
            case int() if name in _BIT_FIELDS:
                shown[name] = f"{value:0{_BIT_FIELDS[name]}x}"
            case str() | int() | None:
                shown[name] = value
            case _:
                raise TypeError(f"{name} is no measurement")
    return shown


# Bit fields by their length in hex digits, the highest bit first.
_BIT_FIELDS = {"misc_select": 8, "xfam": 16}


def _attributes(attributes: SgxAttributes | TdAttributes) -> Json:
    named = {
        name: getattr(attributes, name) for name in _SHOWN_ATTRIBUTES[type(attributes)]
    }
    return {"flags": f"{attributes.flags:016x}", **named}


def _table(rows: Mapping[str, object]) -> list[str]:
    return [f"  {name:<16} {'-' if it is None else it}" for name, it in rows.items()]
