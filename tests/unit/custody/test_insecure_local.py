from __future__ import annotations

import asyncio
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x448
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from tests.support.federation_in_memory import START, Federation, HandClock
from tests.support.plan_tree import plan_tree, toml_of
from tests.support.recorded_log import RecordedLog
from tests.support.running import Run

from cloister.custody.insecure_local import (
    WARRANT_LIFE,
    InsecureLocalCustodian,
    new_insecure_party_key,
)
from cloister.errors import ConfigError, StorageError
from cloister.plan.keys import parse_party_key
from cloister.plan.plan import Plan, parse_plan, plan_hash
from cloister.ratls.identity import new_identity
from cloister.ratls.warrant import Warrant, WarrantTerms, verify_warrant

SPKI = new_identity().tls_spki
# What a second process does: takes some warrants and prints their epochs.
SCRIPT = """
import asyncio, sys
from datetime import UTC, datetime
from pathlib import Path
import structlog
from cloister.custody.insecure_local import InsecureLocalCustodian
from cloister.plan.plan import plan_hash, read_plan
plan = read_plan(Path(sys.argv[1]))
log = structlog.wrap_logger(None, processors=[lambda *_: (_ for _ in ()).throw(
    structlog.DropEvent)], wrapper_class=structlog.make_filtering_bound_logger(20))
custodian = InsecureLocalCustodian(
    plan, key_path=Path(sys.argv[2]), clock=lambda: datetime.now(UTC), log=log)
async def main():
    for _ in range(int(sys.argv[3])):
        warrant = await custodian.warrant(
            run_id=plan.run_id, plan_hash=plan_hash(plan), role="worker",
            party="alice", tls_key=bytes(91))
        print(warrant.terms.epoch)
asyncio.run(main())
"""


@pytest.fixture
def plan(federation: Federation) -> Plan:
    return federation.plan


@pytest.fixture
def key_path(tmp_path: Path, federation: Federation) -> Path:
    path = tmp_path / "insecure-party-key.pem"
    path.write_bytes(pem(federation.keys["alice"]))
    return path


def custodian_of(
    plan: Plan, key_path: Path, *, log: RecordedLog | None = None
) -> InsecureLocalCustodian:
    return InsecureLocalCustodian(
        plan,
        key_path=key_path,
        clock=HandClock(),
        log=(log or RecordedLog()).logger(),
    )


async def warrant_by(custodian: InsecureLocalCustodian, plan: Plan) -> Warrant:
    return await custodian.warrant(
        run_id=plan.run_id,
        plan_hash=plan_hash(plan),
        role="worker",
        party="alice",
        tls_key=SPKI,
    )


def test_it_signs_what_the_plans_party_key_verifies(
    run: Run, plan: Plan, key_path: Path
) -> None:
    public = parse_party_key(plan.find_party("alice").key)
    warrant = run(warrant_by(custodian_of(plan, key_path), plan))
    wanted = WarrantTerms(
        run_id=plan.run_id,
        plan_hash=plan_hash(plan),
        role="worker",
        party="alice",
        tls_key=SPKI,
        epoch=1,
        issued_at=0,
        expires_at=0,
    )
    for at in (START, START + WARRANT_LIFE - timedelta(seconds=1)):
        assert verify_warrant(warrant, key=public, wanted=wanted, at=at).epoch == 1


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("run_id", "blobs/b", "another run"),
        ("plan_hash", bytes(32), "another plan"),
        ("role", "server", "another role"),
        ("party", "bob", "another key"),
        ("party", "mallory", "no party"),
    ],
)
def test_it_signs_nothing_its_party_did_not_agree_to(
    run: Run, plan: Plan, key_path: Path, name: str, value: Any, what: str
) -> None:
    asked: dict[str, Any] = {
        "run_id": plan.run_id,
        "plan_hash": plan_hash(plan),
        "role": "worker",
        "party": "alice",
        "tls_key": SPKI,
    }
    custodian = custodian_of(plan, key_path)
    with pytest.raises(ConfigError, match=what):
        run(custodian.warrant(**(asked | {name: value})))
    assert not key_path.with_suffix(".epoch").exists()


def test_every_warrant_is_warned_of_in_the_log(
    run: Run, plan: Plan, key_path: Path
) -> None:
    log = RecordedLog()
    custodian = custodian_of(plan, key_path, log=log)
    for _ in range(2):
        run(warrant_by(custodian, plan))
    lines = log.named("insecure-warrant")
    assert [line["level"] for line in lines] == ["warning", "warning"]
    assert [line["epoch"] for line in lines] == [1, 2]


def test_epochs_rise_from_one_custodian_to_the_next(
    run: Run, plan: Plan, key_path: Path
) -> None:
    epochs = [
        run(warrant_by(custodian_of(plan, key_path), plan)).terms.epoch
        for _ in range(4)
    ]
    assert epochs == [1, 2, 3, 4]


def test_custodians_in_many_threads_give_every_epoch_once(
    plan: Plan, key_path: Path
) -> None:
    def draw(_: int) -> int:
        return asyncio.run(warrant_by(custodian_of(plan, key_path), plan)).terms.epoch

    with ThreadPoolExecutor(8) as pool:
        epochs = list(pool.map(draw, range(40)))
    assert sorted(epochs) == list(range(1, 41))


def test_custodians_in_other_processes_give_every_epoch_once(
    run: Run, plan: Plan, key_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "plan.toml"
    keys = {party.name: party.key for party in plan.party}
    path.write_bytes(toml_of(plan_tree(keys=keys)))
    command = [sys.executable, "-c", SCRIPT, str(path), str(key_path), "15"]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
        for _ in range(2)
    ]
    series = [list(map(int, p.communicate(timeout=60)[0].split())) for p in processes]
    for epochs in series:
        assert epochs == sorted(epochs)
    assert sorted(series[0] + series[1]) == list(range(1, 31))
    assert run(warrant_by(custodian_of(plan, key_path), plan)).terms.epoch == 31


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"-1",
        b"1.5",
        b"12\n",
        b" 12",
        b"\xff\xfe",
        b"\0",
        "٣".encode(),
        b"9" * 16,
        b"1" * 5000,
        b"0x10",
    ],
)
def test_a_damaged_epoch_file_is_refused_and_left_alone(
    run: Run, plan: Plan, key_path: Path, content: bytes
) -> None:
    epoch_path = key_path.with_suffix(".epoch")
    epoch_path.write_bytes(content)
    with pytest.raises(StorageError) as caught:
        run(warrant_by(custodian_of(plan, key_path), plan))
    assert caught.value.code == "epoch-damaged"
    assert str(epoch_path) in caught.value.what
    assert epoch_path.read_bytes() == content


def test_an_epoch_file_that_cannot_be_written_is_named(
    run: Run, plan: Plan, key_path: Path
) -> None:
    key_path.with_suffix(".epoch").mkdir()
    with pytest.raises(StorageError) as caught:
        run(warrant_by(custodian_of(plan, key_path), plan))
    assert caught.value.code == "epoch-unwritable"


def test_the_epoch_is_counted_on_from_what_the_file_says(
    run: Run, plan: Plan, key_path: Path
) -> None:
    key_path.with_suffix(".epoch").write_text("99")
    assert run(warrant_by(custodian_of(plan, key_path), plan)).terms.epoch == 100
    assert key_path.with_suffix(".epoch").read_text() == "100"


def test_a_plan_on_hardware_gets_no_insecure_custodian(key_path: Path) -> None:
    hardware = parse_plan(toml_of(plan_tree(root="hardware")))
    with pytest.raises(ConfigError) as caught:
        custodian_of(hardware, key_path)
    assert caught.value.code == "custodian-insecure"
    assert not key_path.with_suffix(".epoch").exists()


def pem(
    key: ec.EllipticCurvePrivateKey | x448.X448PrivateKey | ed25519.Ed25519PrivateKey,
    password: bytes | None = None,
) -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no PEM",
        b"-----BEGIN PRIVATE KEY-----\n!!!!\n-----END PRIVATE KEY-----\n",
        pem(ec.generate_private_key(ec.SECP256R1())),
        pem(x448.X448PrivateKey.generate()),
        pem(ed25519.Ed25519PrivateKey.generate(), b"password"),
    ],
)
def test_a_key_that_cannot_be_used_is_named(
    plan: Plan, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=str(path)) as caught:
        custodian_of(plan, path)
    assert caught.value.code == "party-key-unusable"


def test_a_missing_key_is_named(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        custodian_of(plan, tmp_path / "none.pem")
    assert caught.value.got == "FileNotFoundError"


def test_a_new_key_is_its_owners_alone_and_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    new_insecure_party_key(path)
    before = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(StorageError) as caught:
        new_insecure_party_key(path)
    assert caught.value.code == "key-unwritable"
    assert path.read_bytes() == before


def test_no_secret_stands_in_a_repr_or_in_the_log(
    run: Run, plan: Plan, key_path: Path
) -> None:
    log = RecordedLog()
    custodian = custodian_of(plan, key_path, log=log)
    warrant = run(warrant_by(custodian, plan))
    body = key_path.read_text().splitlines()[1]
    secret = custodian._key.private_bytes_raw()
    for text in (repr(custodian), str(vars(custodian)), repr(warrant), log.text()):
        assert body not in text
        assert secret.hex() not in text
        assert repr(secret) not in text
