# ruff: noqa: E501 - what people read is shown as they read it
from __future__ import annotations

from tests.unit.attestation.example_policies import OPEN, STRICT

from cloister.attestation.policy_schema import Policy, policy_sha256
from cloister.attestation.policy_words import explain


def test_a_strict_policy_in_words() -> None:
    assert (
        "\n".join(explain(STRICT))
        == f"""\
Policy {policy_sha256(STRICT)}
accepts evidence only if all of this holds.

What runs is:
  an SGX enclave with MRENCLAVE {"a" * 64}
  and never a TDX trust domain
Where it runs:
  on a SIMULATED platform under the root sha256:{"5" * 64}: nothing is confidential
  on any platform of that root
How current the platform is:
  UpToDate
  open to no known advisory
What its host can do:
  not look inside: debug mode is refused
How another maker's certificate carries it:
  with claims that name its key (Interoperable RA-TLS)

Not looked at: XFAM and XFRM (they differ between equally good hosts), and
measurements that are not named above."""
    )


def test_an_open_policy_in_words_marks_everything_that_opens_it() -> None:
    assert (
        "\n".join(explain(OPEN))
        == f"""\
Policy {policy_sha256(OPEN)}
accepts evidence only if all of this holds.

What runs is one of:
  an SGX enclave with MRSIGNER {"b" * 64}, product number 3, security version at least 7
  an SGX enclave with MRSIGNER {"c" * 64} (CAUTION: any product and any version of that signer)
  an SGX enclave with MRENCLAVE {"d" * 64}, security version 2
  a TDX trust domain with MRTD {"a" * 96}, RTMR0 {"b" * 96}, RTMR1 {"c" * 96}, RTMR2 {"d" * 96}, MRSEAM {"3" * 96}
Where it runs:
  on genuine hardware, under Intel's root
  CAUTION: on any platform, wherever it stands
How current the platform is:
  UpToDate
  CAUTION: SWHardeningNeeded
  CAUTION: OutOfDate
  out of date only until 90 days after its TCB level's date
  CAUTION: open to INTEL-SA-00289, INTEL-SA-00615 and no other advisory
  judged by collateral with TCB evaluation number 17 or higher
What its host can do:
  CAUTION: look inside: debug mode is accepted
  CAUTION: inject exceptions by taking pages away (SEPT_VE_DISABLE is not asked for)
  not move the domain: no service TD is bound
  CAUTION: bind the service TDs with hash {"7" * 96}
How another maker's certificate carries it:
  CAUTION: also as a bare quote over its key, without claims, under an identifier that was encoded wrongly (legacy: Gramine before 1.8)

Not looked at: XFAM and XFRM (they differ between equally good hosts), and
measurements that are not named above."""
    )


def test_platforms_and_closed_trust_domains_are_said() -> None:
    policy = Policy(
        root=f"preproduction:sha256:{'6' * 64}",
        tdx=OPEN.tdx,
        platforms=("1" * 32, "2" * 32),
        accepted_advisories="any",
    )
    lines = explain(policy)
    assert "  and never an SGX enclave" in lines
    assert f"  on the platform {'2' * 32}" in lines
    assert "  not inject exceptions by taking pages away (SEPT_VE_DISABLE)" in lines
    assert "  not move the domain: no service TD is bound" in lines
    assert "  CAUTION: open to any advisory, known today or not" in lines
    assert any("PREPRODUCTION" in line for line in lines)
