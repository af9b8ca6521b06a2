"""``cloister quote`` and ``cloister policy`` as a user calls them: real processes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import cloister
from cloister.attestation.certificate_evidence import (
    EVIDENCE_OID,
    EVIDENCE_TAG,
    LEGACY_EVIDENCE_OID,
)
from cloister.attestation.der import encode, encode_oid, encode_sequence
from cloister.attestation.platforms.measurement import Measurement
from cloister.attestation.platforms.simulated.collateral import (
    SimulatedCollateral,
    met_level,
)
from cloister.attestation.platforms.simulated.profile import MACHINE
from cloister.attestation.platforms.simulated.quotes import SGX_V3, TD_15_V5, QuoteForm
from cloister.attestation.platforms.simulated.root import (
    SimulatedRoot,
    create_simulated_root,
)
from cloister.attestation.platforms.simulated.scenario import SimulatedScenario
from cloister.attestation.policy import Policy, SgxReference, TdxReference
from cloister.attestation.reports import SGX_FLAG_DEBUG
from cloister.plan.policy_file import format_policy, read_policy

SOURCE = Path(cloister.__file__).parents[1]
SHARED = Path(os.environ.get("CLOISTER_SHARED", Path(__file__).parents[3] / "shared"))
QUOTES = SHARED / "quotes"
AT = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
MEASURED = Measurement(
    role="worker",
    mr_enclave=b"\xa1" * 32,
    mr_signer=b"\xa2" * 32,
    isv_prod_id=3,
    isv_svn=7,
    mrtd=b"\xb1" * 48,
    rtmr0=b"\xb2" * 48,
    rtmr1=b"\xb3" * 48,
    rtmr2=b"\xb4" * 48,
)
ENCLAVE = SgxReference(mr_enclave=MEASURED.mr_enclave.hex())
DOMAIN = TdxReference(
    mrtd=MEASURED.mrtd.hex(),
    rtmr0=MEASURED.rtmr0.hex(),
    rtmr1=MEASURED.rtmr1.hex(),
    rtmr2=MEASURED.rtmr2.hex(),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    json: dict[str, Any]
    words: str
    errors: str


def run(*arguments: str | Path) -> Answer:
    """Runs ``cloister ARGUMENTS`` from this checkout, wherever it is installed."""
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-m", "cloister", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "COLUMNS": "200"},
    )
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    return Answer(
        status=done.returncode,
        json=json.loads(done.stdout) if "--json" in arguments and done.stdout else {},
        words=done.stdout,
        errors=done.stderr,
    )


class Case:
    """A quote and its collateral as files, and the root that both hang from."""

    def __init__(self, directory: Path, root: SimulatedRoot) -> None:
        self.directory = directory
        self.root_name = root.trust_root.name
        self.root_der = directory / "root.der"
        self.root_der.write_bytes(root.trust_root.der)
        self.quote = directory / "quote.bin"
        self.collateral = directory / "collateral.json"

    def verify(self, *arguments: str | Path, kind: str = "simulated") -> Answer:
        return self.verify_file(self.quote, *arguments, kind=kind)

    def verify_file(
        self, quote: Path, *arguments: str | Path, kind: str = "simulated"
    ) -> Answer:
        trust = ("--root-ca", self.root_der, "--root-kind", kind)
        at = () if "--at" in arguments else ("--at", str(int(AT.timestamp())))
        files = (quote, "--collateral", self.collateral)
        return run("quote", "verify", *files, *trust, *at, "--json", *arguments)

    def policy(self, **fields: Any) -> Path:
        """Writes a policy that accepts this case, with some fields changed."""
        policy = Policy(
            **{"root": self.root_name, "sgx": (ENCLAVE,), "tdx": (DOMAIN,), **fields}
        )
        path = self.directory / "policy.toml"
        path.write_text(format_policy(policy))
        return path

    def file(self, name: str, content: object) -> Path:
        path = self.directory / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(json.dumps(content))
        return path


Make = Callable[..., Case]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> SimulatedRoot:
    return create_simulated_root(tmp_path_factory.mktemp("root"), at=AT)


@pytest.fixture
def make(root: SimulatedRoot, tmp_path: Path) -> Make:
    def case(
        form: QuoteForm = SGX_V3, *, report_data: bytes = bytes(64), **scenario: Any
    ) -> Case:
        made = SimulatedScenario(
            form=form, at=AT, measurement=MEASURED, **scenario
        ).build(root, report_data=report_data)
        files = Case(tmp_path, root)
        files.quote.write_bytes(made.quote)
        files.collateral.write_text(json.dumps(made.collateral))
        return files

    return case


def test_a_genuine_enclave_is_described_whole(make: Make) -> None:
    answer = make(report_data=bytes(range(64))).verify()
    assert answer.status == 0
    said = answer.json
    assert said["genuine"] is True
    assert (said["tee"], said["quote_version"]) == ("sgx", 3)
    assert said["tcb_status"] == "UpToDate"
    assert said["advisory_ids"] == []
    assert said["debug"] is False
    assert said["simulated"] is True
    assert said["fmspc"] == "FF53494D0001"
    assert said["report_data"] == bytes(range(64)).hex()
    assert said["appraisal"] is None
    assert [check["step"] for check in said["checks"]] == [1, 2, 3, 4, 5, 7, 8, 9, 10]
    measured = said["measurements"]
    assert measured["mr_enclave"] == "a1" * 32
    assert measured["mr_signer"] == "a2" * 32
    assert (measured["isv_prod_id"], measured["isv_svn"]) == (3, 7)


def test_a_genuine_trust_domain_is_described_whole(make: Make) -> None:
    said = make(TD_15_V5).verify().json
    assert said["genuine"] is True
    assert (said["tee"], said["quote_version"]) == ("tdx", 5)
    assert [check["step"] for check in said["checks"]] == list(range(1, 11))
    measured = said["measurements"]
    assert measured["mrtd"] == "b1" * 48
    assert [measured[f"rtmr{n}"] for n in range(3)] == [
        f"b{n}" * 48 for n in range(2, 5)
    ]
    assert measured["rtmr3"] == "00" * 48
    assert measured["mrservicetd"] == "00" * 48
    for name in ("mrconfigid", "mrowner", "mrownerconfig", "mrseam"):
        assert re.fullmatch("[0-9a-f]{96}", measured[name]), name


def test_debug_and_outdated_are_genuine_and_the_policys_business(make: Make) -> None:
    machine = dataclasses.replace(
        MACHINE, enclave_flags=MACHINE.enclave_flags | SGX_FLAG_DEBUG
    )
    level = met_level(
        machine,
        tee="sgx",
        date=AT - timedelta(days=100),
        status="OutOfDate",
        advisory_ids=("INTEL-SA-00960", "INTEL-SA-00615"),
    )
    case = make(
        machine=machine,
        collateral=SimulatedCollateral(
            tee="sgx", at=AT, machine=machine, levels=(level,)
        ),
    )
    said = case.verify().json
    assert said["genuine"] is True
    assert said["debug"] is True
    assert said["tcb_status"] == "OutOfDate"
    assert said["advisory_ids"] == ["INTEL-SA-00615", "INTEL-SA-00960"]
    refused = case.verify("--policy", case.policy())
    assert refused.status == 3
    assert refused.json["genuine"] is True
    assert refused.json["appraisal"]["accepted"] is False
    failed = [c for c in refused.json["appraisal"]["checks"] if not c["passed"]]
    assert [check["code"] for check in failed] == [
        "appraisal-tcb-status",
        "appraisal-advisories",
        "appraisal-debug",
    ]
    assert all(check["expected"] and check["got"] for check in failed)
    assert refused.errors.count("error:") == 3
    named: dict[str, Any] = {
        "tcb_statuses": ("OutOfDate",),
        "tcb_grace_days": 100,
        "accepted_advisories": ("INTEL-SA-00615", "INTEL-SA-00960"),
        "debug": "accepted-insecurely",
    }
    accepted = case.verify("--policy", case.policy(**named))
    assert accepted.status == 0
    assert accepted.json["appraisal"]["accepted"] is True
    late = str(int((AT + timedelta(days=1)).timestamp()))
    assert case.verify("--policy", case.policy(**named), "--at", late).status == 3


def test_a_forged_quote_is_not_genuine_and_says_why(make: Make) -> None:
    case = make()
    quote = bytearray(case.quote.read_bytes())
    quote[48 + 64] ^= 1
    answer = case.verify_file(case.file("forged.bin", bytes(quote)))
    assert answer.status == 3
    assert set(answer.json) == {"genuine", "error"}
    assert answer.json["genuine"] is False
    error = answer.json["error"]
    assert error["code"] == "quote-signature"
    assert error["step"] == 9
    assert error["message"]
    assert "NOT GENUINE" in answer.errors


def test_a_revoked_platform_is_not_genuine_whatever_the_policy_says(
    make: Make,
) -> None:
    case = make(revoked=frozenset({"pck"}))
    answer = case.verify("--policy", case.policy())
    assert answer.status == 3
    assert answer.json["error"]["step"] == 3
    assert "appraisal" not in answer.json


@pytest.mark.parametrize("content", [b"", b"{", b"\x03\x00", b"\x30\x00", bytes(9_000)])
def test_files_that_hold_no_quote_or_collateral_are_refused(
    make: Make, content: bytes
) -> None:
    case = make()
    answer = case.verify_file(case.file("none.bin", content))
    assert answer.status == 3
    assert answer.json["error"]["step"] == 1
    case.collateral.write_bytes(content)
    answer = case.verify()
    assert answer.status == 3
    assert answer.json["error"]["step"] == 4


def test_without_a_root_of_ones_own_only_hardware_is_genuine(make: Make) -> None:
    case = make()
    answer = run(
        "quote",
        "verify",
        case.quote,
        "--collateral",
        case.collateral,
        "--at",
        str(int(AT.timestamp())),
        "--json",
    )
    assert answer.status == 3
    assert answer.json["error"]["code"] == "root-untrusted"


def test_a_root_of_ones_own_is_never_hardware(make: Make) -> None:
    case = make()
    assert case.verify(kind="hardware").status == 2
    answer = case.verify(kind="preproduction")
    assert answer.json["simulated"] is True
    assert answer.json["root"].startswith("preproduction:sha256:")
    assert case.verify("--policy", case.policy(), kind="preproduction").status == 3
    intel = Path(cloister.__file__).parent.glob("attestation/roots/*.der")
    case.root_der.write_bytes(next(iter(intel)).read_bytes())
    answer = case.verify()
    assert answer.status == 2
    assert answer.json["error"]["code"] == "root-kind"


def test_root_and_kind_belong_together(make: Make) -> None:
    case = make()
    files = ("quote", "verify", case.quote, "--collateral", case.collateral)
    for alone in (("--root-ca", case.root_der), ("--root-kind", "simulated")):
        answer = run(*files, *alone)
        assert answer.status == 2
        assert "belong together" in answer.errors


def test_the_time_decides(make: Make) -> None:
    case = make()
    for at in (AT - timedelta(days=1), AT + timedelta(days=31)):
        answer = case.verify("--at", str(int(at.timestamp())))
        assert answer.status == 3
    for at_text in ("-1", "1e9", "999999999999999"):
        assert case.verify("--at", at_text).status == 2


@pytest.mark.parametrize("missing", ["quote", "collateral", "root_der", "policy"])
def test_a_missing_file_is_a_usage_error(make: Make, missing: str) -> None:
    case = make()
    policy = case.policy()
    (policy if missing == "policy" else getattr(case, missing)).unlink()
    answer = case.verify("--policy", policy)
    assert answer.status == 2
    assert answer.json["error"]["code"] == "file-unreadable"


def certificate(quote: bytes, claims: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "RATLS")])
    evidence = cbor2.dumps(cbor2.CBORTag(EVIDENCE_TAG, [quote, claims]))
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(AT)
        .not_valid_after(AT)
        .add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(EVIDENCE_OID), evidence),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    return built.public_bytes(Encoding.PEM)


def bare_certificate(extensions: dict[str, bytes], spki: bytes) -> bytes:
    """A certificate with the legacy identifier too, which pyca refuses to write."""
    written = [
        encode_sequence(encode_oid(oid), encode(0x04, value))
        for oid, value in extensions.items()
    ]
    body = encode_sequence(
        encode(0xA0, encode(0x02, b"\x02")),
        encode(0x02, b"\x01"),
        *[encode_sequence()] * 4,
        spki,
        encode(0xA3, encode_sequence(*written)),
    )
    return encode_sequence(body, encode_sequence(), encode(0x03, b"\x00"))


def sha256(data: bytes) -> bytes:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(data)
    return digest.finalize()


def test_a_certificate_is_genuine_with_a_quote_for_its_own_key(make: Make) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    spki = key.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    claims = cbor2.dumps({"pubkey-hash": cbor2.dumps([1, sha256(spki)])})
    case = make(report_data=sha256(claims) + bytes(32))
    pem = certificate(case.quote.read_bytes(), claims, key)
    path = case.file("peer.pem", pem)
    answer = case.verify_file(path)
    assert answer.status == 0
    assert answer.json["certificate_bound"] is True
    assert answer.json["certificate_layout"] == "interoperable"
    shown = run("quote", "show", path, "--json")
    assert shown.json["measurements"]["mr_enclave"] == "a1" * 32
    assert shown.json["certificate_layout"] == "interoperable"
    bare = case.verify().json
    assert (bare["certificate_bound"], bare["certificate_layout"]) == (None, None)
    # The same honest claims around a quote that somebody made for another key.
    other = make(report_data=bytes(64))
    forged = certificate(other.quote.read_bytes(), claims, key)
    answer = other.verify_file(other.file("forged.pem", forged))
    assert answer.status == 3
    assert answer.json["genuine"] is False
    assert answer.json["error"]["code"] == "certificate-binding"


def test_a_certificate_with_an_unknown_claim_is_refused(make: Make) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    spki = key.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    named = {"pubkey-hash": cbor2.dumps([1, sha256(spki)])}
    for more, status in (({"nonce": b"n"}, 0), ({"key_0": b"value_0"}, 3)):
        claims = cbor2.dumps({**named, **more})
        case = make(report_data=sha256(claims) + bytes(32))
        pem = certificate(case.quote.read_bytes(), claims, key)
        answer = case.verify_file(case.file("peer.pem", pem))
        assert answer.status == status
        if status:
            assert answer.json["genuine"] is False
            assert answer.json["error"]["got"] == "'key_0'"


def test_a_legacy_certificate_is_verified_only_where_a_policy_asks(make: Make) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    case = make(report_data=sha256(spki) + bytes(32))
    quote = case.quote.read_bytes()
    path = case.file("old.der", bare_certificate({LEGACY_EVIDENCE_OID: quote}, spki))
    entry = {
        "mr_enclave": "a1" * 32,
        "mr_signer": "a2" * 32,
        "isv_prod_id": "3",
        "isv_svn": "7",
    }
    switches = {f"verify_{name}": "on" for name in entry}
    config = case.file("dynamic_config.json", {**switches, "sgx_mrs": [entry]})
    refusing = (
        (),
        ("--policy", case.policy()),
        ("--policy", config),
    )
    for arguments in refusing:
        answer = case.verify_file(path, *arguments)
        assert answer.status == 3
        assert answer.json["genuine"] is False
        error = answer.json["error"]
        assert (error["code"], error["step"]) == ("certificate-legacy", 1)
        assert 'legacy_certificates = "accepted"' in error["expected"]
        assert "legacy_certificates" in answer.errors
    asking = ("--policy", case.policy(legacy_certificates="accepted"))
    answer = case.verify_file(path, *asking)
    assert answer.status == 0
    assert answer.json["certificate_bound"] is True
    assert answer.json["certificate_layout"] == "legacy"
    assert answer.json["appraisal"]["accepted"] is True
    words = run(
        *("quote", "verify", path, "--collateral", case.collateral, *asking),
        *("--root-ca", case.root_der, "--root-kind", "simulated"),
        *("--at", str(int(AT.timestamp()))),
    ).words
    assert "LEGACY: a bare quote over its key" in words
    # Asked for or not, it is for its own key.
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    stolen = bare_certificate(
        {LEGACY_EVIDENCE_OID: quote},
        other.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    )
    answer = case.verify_file(case.file("stolen.der", stolen), *asking)
    assert answer.status == 3
    assert answer.json["error"]["code"] == "certificate-binding"


def test_show_says_that_a_certificate_is_legacy_and_unverified(make: Make) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    case = make()
    quote = case.quote.read_bytes()
    path = case.file("old.der", bare_certificate({LEGACY_EVIDENCE_OID: quote}, spki))
    shown = run("quote", "show", path, "--json")
    assert shown.status == 0
    assert shown.json["verified"] is False
    assert shown.json["certificate_layout"] == "legacy"
    words = run("quote", "show", path).words
    assert words.startswith("NOT VERIFIED")
    assert "LEGACY" in words


def test_the_references_file_is_a_policy_too(make: Make) -> None:
    case = make()
    entry = {
        "mr_enclave": "a1" * 32,
        "mr_signer": "a2" * 32,
        "isv_prod_id": "3",
        "isv_svn": "7",
    }
    switches = {f"verify_{key}": "on" for key in entry}
    path = case.file("dynamic_config.json", {**switches, "sgx_mrs": [entry]})
    answer = case.verify("--policy", path)
    assert answer.status == 0
    assert answer.json["appraisal"]["accepted"] is True
    other = {**entry, "isv_svn": "8"}
    path = case.file("dynamic_config.json", {**switches, "sgx_mrs": [other]})
    assert case.verify("--policy", path).status == 3
    both = case.file("dynamic_config.json", {**switches, "sgx_mrs": [other, entry]})
    assert case.verify("--policy", both).status == 0
    open_ = {**switches, "verify_mr_enclave": "", "sgx_mrs": [entry]}
    answer = case.verify("--policy", case.file("dynamic_config.json", open_))
    assert answer.status == 2
    assert answer.json["error"]["code"] == "dynamic-config-switch"


def test_words_for_people_say_genuine_and_wanted_apart(make: Make) -> None:
    case = make(TD_15_V5)
    answer = run(
        *("quote", "verify", case.quote, "--collateral", case.collateral),
        *("--root-ca", case.root_der, "--root-kind", "simulated"),
        *("--at", str(int(AT.timestamp())), "--policy", case.policy(tdx=())),
    )
    assert answer.status == 3
    assert answer.words.startswith("GENUINE: SIMULATED")
    assert "REFUSED by the policy:" in answer.words
    assert "REFUSED appraisal-measurement" in answer.words
    assert "other code" in answer.errors


def test_show_believes_nothing_and_says_so(make: Make) -> None:
    case = make()
    answer = run("quote", "show", case.quote, "--json")
    assert answer.status == 0
    assert answer.json["verified"] is False
    assert answer.json["fmspc"] == "FF53494D0001"
    assert run("quote", "show", case.quote).words.startswith("NOT VERIFIED")
    refused = run("quote", "show", case.root_der, "--json")
    assert refused.status == 3
    assert refused.json["error"]["code"] == "certificate-evidence"


def test_a_policy_is_explained(make: Make) -> None:
    case = make()
    answer = run("policy", "explain", case.policy(debug="accepted-insecurely"))
    assert answer.status == 0
    assert "CAUTION: look inside" in answer.words
    case.policy().write_text('root = "hardware"\n')
    answer = run("policy", "explain", case.directory / "policy.toml")
    assert answer.status == 2
    assert "policy accepts nothing" in answer.errors


@pytest.mark.long
def test_a_policy_is_written_from_measurements(template: Path, tmp_path: Path) -> None:
    plan = template / "plan.toml"
    tables = tmp_path / "policies.toml"
    tables.write_text(run("policy", "from-measurements", plan).words)
    words = run("policy", "explain", tables).words
    for role in ("server:", "worker:"):
        assert role in words
    one = tmp_path / "worker.toml"
    one.write_text(run("policy", "from-measurements", plan, "--role", "worker").words)
    policy = read_policy(one, root="hardware")
    measured = run("measure", plan, "--json").json["worker"]
    assert policy.sgx == (SgxReference(mr_enclave=measured["mr_enclave"]),)
    assert policy.tdx[0].rtmr2 == measured["rtmr2"]
    as_json = run("policy", "from-measurements", plan, "--json").json
    assert as_json["worker"]["sgx"][0]["mr_enclave"] == measured["mr_enclave"]
    assert "CAUTION" not in run("policy", "explain", plan).words
    assert f"MRENCLAVE {measured['mr_enclave']}" in run("plan", "show", plan).words


def test_real_quotes_are_judged_from_the_command_line() -> None:
    # Without that folder this checks nothing and passes.
    vectors: tuple[tuple[str, str, str, int, str], ...] = (
        (
            "automata/quotev3",
            "sgx_00606a000000_2025-08",
            "1756530546",
            0,
            "SWHardeningNeeded INTEL-SA-00615",
        ),
        ("dcap-qvl/tdx_near", "phala_tdx_near", "1758093775", 0, "UpToDate"),
        ("trustee/tdx_4", "tdx_50806f000000_2023-06", "1687939438", 0, "UpToDate"),
        ("dcap-qvl/tdx_v4_tappd", "phala_tdx_v4_sample", "1751624191", 3, ""),
    )
    for name, collateral, at, status, expected in vectors if QUOTES.exists() else ():
        answer = run(
            *("quote", "verify", QUOTES / name / "quote.bin", "--at", at, "--json"),
            *("--collateral", QUOTES / "_collateral_sets" / f"{collateral}.json"),
        )
        assert answer.status == status, name
        if status:
            assert answer.json["error"]["step"] == 10
            continue
        said = answer.json
        assert " ".join([said["tcb_status"], *said["advisory_ids"]]) == expected
        assert said["simulated"] is False
        assert said["debug"] is (name == "trustee/tdx_4")
