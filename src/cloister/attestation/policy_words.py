"""Says in words what a policy accepts, for people who must sign it.

Everything that makes a policy accept more than the strictest one is marked, so that it
cannot be read over.
"""

from __future__ import annotations

from cloister.attestation.policy_schema import NO_SERVICE_TD, Policy, policy_sha256
from cloister.attestation.reference_values import Pin, Reference

_NAMES = {
    "mr_enclave": "MRENCLAVE",
    "mr_signer": "MRSIGNER",
    "isv_prod_id": "product number",
    "isv_svn": "security version",
}
_MARK = "CAUTION:"


def explain(policy: Policy) -> list[str]:
    """Returns what `policy` accepts, line by line."""
    return [
        f"Policy {policy_sha256(policy)}",
        "accepts evidence only if all of this holds.",
        "",
        *_code(policy),
        *_where(policy),
        *_how_current(policy),
        *_how_closed(policy),
        *_how_carried(policy),
        "",
        "Not looked at: XFAM and XFRM (they differ between equally good hosts), and",
        "measurements that are not named above.",
    ]


def references_in_words(policy: Policy) -> list[str]:
    """Returns one line for every enclave and every trust domain that is accepted."""
    return [
        *(f"an SGX enclave with {_pins(it)}" for it in policy.sgx),
        *(f"an SGX enclave with {_pins(it)}{_openness(it)}" for it in policy.sgx_exact),
        *(f"a TDX trust domain with {_pins(it)}" for it in policy.tdx),
    ]


def root_in_words(policy: Policy) -> str:
    """Returns what stands behind the evidence."""
    if policy.root == "hardware":
        return "genuine hardware, under Intel's root"
    kind, _, digest = policy.root.partition(":")
    return f"a {kind.upper()} platform under the root {digest}: nothing is confidential"


def _code(policy: Policy) -> list[str]:
    lines = references_in_words(policy)
    heading = "What runs is" if len(lines) == 1 else "What runs is one of"
    closed = [
        f"  and never {name}"
        for name, entries in (
            ("an SGX enclave", policy.references("sgx")),
            ("a TDX trust domain", policy.references("tdx")),
        )
        if not entries
    ]
    return [f"{heading}:", *(f"  {line}" for line in lines), *closed]


def _where(policy: Policy) -> list[str]:
    lines = ["Where it runs:", f"  on {root_in_words(policy)}"]
    if policy.platforms == "any":
        lines.append(f"  {_MARK} on any platform, wherever it stands")
    elif policy.platforms is None:
        lines.append("  on any platform of that root")
    else:
        lines += [f"  on the platform {it}" for it in policy.platforms]
    return lines


def _how_current(policy: Policy) -> list[str]:
    lines = ["How current the platform is:"]
    lines += [
        f"  {status}" if status == "UpToDate" else f"  {_MARK} {status}"
        for status in policy.tcb_statuses
    ]
    if policy.tcb_grace_days is not None:
        lines.append(
            f"  out of date only until {policy.tcb_grace_days} days after its TCB"
            " level's date"
        )
    if policy.accepted_advisories == "any":
        lines.append(f"  {_MARK} open to any advisory, known today or not")
    elif policy.accepted_advisories:
        lines.append(
            f"  {_MARK} open to {', '.join(sorted(policy.accepted_advisories))}"
            " and no other advisory"
        )
    else:
        lines.append("  open to no known advisory")
    if policy.min_tcb_evaluation_number:
        lines.append(
            "  judged by collateral with TCB evaluation number"
            f" {policy.min_tcb_evaluation_number} or higher"
        )
    elif not policy.root.startswith("simulated:"):
        lines.append(
            f"  {_MARK} judged by any collateral in date: a host that holds its clock"
            " back can use old ones (set min_tcb_evaluation_number)"
        )
    return lines


def _how_closed(policy: Policy) -> list[str]:
    lines = ["What its host can do:"]
    if policy.debug == "refused":
        lines.append("  not look inside: debug mode is refused")
    else:
        lines.append(f"  {_MARK} look inside: debug mode is accepted")
    if not policy.tdx:
        return lines
    if policy.sept_ve_disable == "required":
        lines.append("  not inject exceptions by taking pages away (SEPT_VE_DISABLE)")
    else:
        lines.append(
            f"  {_MARK} inject exceptions by taking pages away (SEPT_VE_DISABLE is"
            " not asked for)"
        )
    if NO_SERVICE_TD in policy.mrservicetd:
        lines.append("  not move the domain: no service TD is bound")
    others = [it for it in policy.mrservicetd if it != NO_SERVICE_TD]
    lines += [f"  {_MARK} bind the service TDs with hash {it}" for it in others]
    return lines


def _how_carried(policy: Policy) -> list[str]:
    lines = ["How another maker's certificate carries it:"]
    if policy.legacy_certificates == "refused":
        lines.append("  with claims that name its key (Interoperable RA-TLS)")
    else:
        lines.append(
            f"  {_MARK} also as a bare quote over its key, without claims, under an"
            " identifier that was encoded wrongly (legacy: Gramine before 1.8)"
        )
    return lines


def _pins(reference: Reference) -> str:
    return ", ".join(_pin(pin) for pin in reference.pins())


def _pin(pin: Pin) -> str:
    name = _NAMES.get(pin.name, pin.name.upper())
    return f"{name} {'' if pin.relation == 'is' else 'at least '}{pin.value}"


def _openness(reference: Reference) -> str:
    """Returns what an entry by signer leaves open, if it leaves something open."""
    named = {pin.name for pin in reference.pins()}
    if "mr_enclave" in named:
        return ""
    left = [
        words
        for name, words in (
            ("isv_prod_id", "any product"),
            ("isv_svn", "any version"),
        )
        if name not in named
    ]
    return f" ({_MARK} {' and '.join(left)} of that signer)" if left else ""
