"""`cloister data`, by the commands that people type."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from tests.integration.conftest import LIMIT_SECONDS, cloister
from tests.support.canaries import Canaries
from tests.support.plan_tree import at, plan_tree, put, toml_of
from tests.support.plinius_files import KEY, as_floats, write_plinius

from cloister.cli.custodian_files import INTEL_COLLATERAL, write_custodian
from cloister.cli.custodians import open_keys, open_register
from cloister.cli.data_sealing import data_key
from cloister.cli.host_time import utc_now
from cloister.cli.places import CustodianPlace, read_custodian_place
from cloister.storage.sealed_data import read_sealed_data
from cloister.storage.sealed_file import MAGIC

TRAIN, HELD_OUT, BYTES = 5, 2, 40


@pytest.fixture
def custodian(tmp_path: Path) -> CustodianPlace:
    return new_custodian(tmp_path, "alice")


def new_custodian(directory: Path, party: str) -> CustodianPlace:
    """Makes a custodian with a data key, as two commands do it."""
    own = directory / party
    own.mkdir()
    address = "127.0.0.1:7003"
    write_custodian(own, party=party, address=address, collateral=INTEL_COLLATERAL)
    place = read_custodian_place(own)
    with open_register(place) as register:
        open_keys(place, register).add("data", label="scans", at=utc_now())
    return place


@pytest.fixture
def scans(tmp_path: Path) -> NDArray[np.uint8]:
    """Writes arrays of one field; returns its values, no two records alike."""
    values = np.frombuffer(secrets.token_bytes((TRAIN + HELD_OUT) * BYTES), np.uint8)
    source = tmp_path / "arrays"
    source.mkdir()
    np.save(source / "scan.npy", values.reshape(-1, BYTES))
    return values.reshape(-1, BYTES)


def told(*arguments: object, code: int = 0) -> str:
    """Returns what a command says on stdout."""
    done = cloister(*map(str, arguments))
    assert done.returncode == code, done.stderr
    return done.stdout


def refused(*arguments: object, code: int = 4) -> dict[str, str]:
    """Returns the error with which a command ends."""
    error: dict[str, str] = json.loads(told(*arguments, "--json", code=code))["error"]
    return error


def test_records_are_sealed_and_verified_and_the_plan_gets_two_lines(
    tmp_path: Path, custodian: CustodianPlace, scans: NDArray[np.uint8]
) -> None:
    file, source = tmp_path / "scans.sealed", tmp_path / "arrays"
    seal = ("data", "seal", "arrays", source, "-o", file)
    mine = ("--custodian", custodian.directory)
    lines = tomllib.loads(told(*seal, *mine, "--held-out", HELD_OUT))
    assert list(lines) == ["data", "data_key"]
    sealed = file.read_bytes()
    canaries = Canaries()
    for index, scan in enumerate(scans):
        canaries.plant(f"record {index}", scan.tobytes())
    assert canaries.found_in(sealed) == set()
    assert file.stat().st_mode & 0o777 == 0o600

    # A plan with these lines knows it again.
    plan, alice = tmp_path / "plan.toml", at(plan_tree(), ("party", 1))
    assert isinstance(alice, dict)
    owner = read_sealed_data(file).manifest.owner
    own = {**alice, "key": owner, **lines}
    plan.write_bytes(toml_of(put(plan_tree(), ("party", 1), own)))
    verify = ("data", "verify", file, *mine, "--plan", plan)
    found = json.loads(told(*verify, "--json"))
    assert found["records"] == TRAIN + HELD_OUT
    assert (found["plan"], found["data"]) == ("the pinned data", lines["data"])

    # The same records once more are another data set; the file is never replaced.
    assert refused(*seal, *mine, "--held-out", HELD_OUT)["code"] == "data-exists"
    assert file.read_bytes() == sealed


@pytest.mark.usefixtures("scans")
def test_a_record_that_was_altered_is_named(
    tmp_path: Path, custodian: CustodianPlace
) -> None:
    file = sealed_scans(tmp_path, custodian)
    right, each = file.read_bytes(), BYTES + 16
    verify = ("data", "verify", file, "--custodian", custodian.directory)
    third = len(MAGIC) + 3 * each
    flipped = bytearray(right)
    flipped[third + 5] ^= 1
    file.write_bytes(flipped)
    error = refused(*verify)
    assert error["code"] == "data-damaged"
    assert "train record 3" in error["what"]
    # Two records in each other's place.
    first, second = (right[third + n * each : third + (n + 1) * each] for n in (-1, 0))
    file.write_bytes(right.replace(first + second, second + first))
    assert "train record 2" in refused(*verify)["what"]
    file.write_bytes(right[: third - each] + right[third:])
    assert refused(*verify)["code"] == "data-truncated"


@pytest.mark.usefixtures("scans")
def test_nobody_else_verifies_a_partys_data(
    tmp_path: Path, custodian: CustodianPlace
) -> None:
    file = sealed_scans(tmp_path, custodian)
    other = new_custodian(tmp_path, "bob")
    verify = ("data", "verify", file, "--custodian")
    assert refused(*verify, other.directory)["code"] == "data-foreign"
    with open_register(custodian) as register:
        keys = open_keys(custodian, register)
        name = read_sealed_data(file).manifest.key
        keys.revoke(name, at=utc_now())
    error = refused(*verify, custodian.directory, code=3)
    assert error["code"] == "key-revoked"


def sealed_scans(directory: Path, custodian: CustodianPlace) -> Path:
    file = directory / "scans.sealed"
    told(
        *("data", "seal", "arrays", directory / "arrays", "-o", file),
        *("--custodian", custodian.directory, "--key", "scans"),
        *("--held-out", HELD_OUT),
    )
    return file


def test_ctrl_c_leaves_nothing(tmp_path: Path, custodian: CustodianPlace) -> None:
    source, out = tmp_path / "arrays", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    # Millions of records and hardly a byte on the disk.
    path = source / "value.npy"
    open_memmap(path, mode="w+", dtype=np.dtype("<u1"), shape=(20_000_000,)).flush()
    started = subprocess.Popen(  # noqa: S603 - our own program
        [
            *(sys.executable, "-m", "cloister", "data", "seal", "arrays", str(source)),
            *("-o", str(out / "sealed"), "--custodian", str(custodian.directory)),
            *("--held-out", "0"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert started.stderr is not None
        line = started.stderr.readline()
        assert line.startswith("sealing: 1024 of 20000000 records")
        assert [path.suffix for path in out.iterdir()] == [".part"]
        started.send_signal(signal.SIGINT)
        _, errors = started.communicate(timeout=LIMIT_SECONDS)
    finally:
        started.kill()
    assert started.returncode == 130
    assert "interrupted" in errors
    assert list(out.iterdir()) == []


# What Plinius encrypted.


@pytest.fixture
def imported(
    tmp_path: Path, custodian: CustodianPlace
) -> Callable[[], tuple[object, ...]]:
    """Writes Plinius' files; returns the command that imports them."""
    (tmp_path / "key").write_text(KEY.hex() + "\n")
    images, labels = np.zeros((12, 784), np.uint8), np.arange(12) % 10
    images[np.arange(12), np.arange(12)] = 200  # of image k, pixel k
    files = write_plinius(tmp_path, *as_floats(images, labels.astype(np.uint8)))
    return lambda: (
        *("data", "import-plinius", files.images, files.labels),
        *("--key-file", tmp_path / "key"),
        *("-o", tmp_path / "mnist.sealed", "--custodian", custodian.directory),
        *("--held-out", 2),
    )


def test_what_plinius_encrypted_is_sealed_anew(
    tmp_path: Path,
    custodian: CustodianPlace,
    imported: Callable[[], tuple[object, ...]],
) -> None:
    said = json.loads(told(*imported(), "--json"))
    assert (said["train"], said["held_out"], said["source"]) == (10, 2, "plinius")
    unopened = read_sealed_data(tmp_path / "mnist.sealed")
    opened = unopened.open(data_key(custodian, None), schema=unopened.manifest.schema)
    batch = opened.split("held-out").read(np.array([1]))
    assert batch["label"].tolist() == [1]
    assert batch["image"].ravel()[11] == 200


def test_one_record_that_plinius_did_not_encrypt_leaves_nothing(
    tmp_path: Path, imported: Callable[[], tuple[object, ...]]
) -> None:
    labels = bytearray((tmp_path / "enc_mnist_labels.data").read_bytes())
    labels[-1] ^= 1
    (tmp_path / "enc_mnist_labels.data").write_bytes(labels)
    before = sorted(tmp_path.rglob("*"))
    error = refused(*imported())
    assert error["code"] == "plinius-tag"
    assert "label 11" in error["what"]
    assert sorted(tmp_path.rglob("*")) == before
