from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from cloister.attestation.platforms.measurement import (
    ROLES,
    Installation,
    Interpreter,
    Measurement,
    measure_installation,
    node_measurement,
    running_interpreter,
)
from cloister.errors import ConfigError, PlatformError
from cloister.plan.plan import Role

TASK = b"class Digits: ...\n"
STRATEGY = b"class Own: ...\n"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A small installation on disk, laid out like a real one."""

    base: Path

    @property
    def standard(self) -> Path:
        return self.base / "lib" / "python3.11"

    @property
    def site(self) -> Path:
        return self.base / "venv" / "site-packages"

    @property
    def interpreter(self) -> Interpreter:
        return Interpreter(
            executable=self.base / "bin" / "python3.11",
            libraries=(self.base / "lib" / "libpython3.11.so.1.0",),
            standard_library=self.standard,
        )

    @property
    def search_path(self) -> tuple[str, ...]:
        return (
            str(self.base / "lib" / "python311.zip"),
            str(self.standard),
            str(self.standard / "lib-dynload"),
            str(self.site),
        )

    def installation(self, *search_path: str) -> Installation:
        return measure_installation(
            interpreter=self.interpreter, search_path=search_path or self.search_path
        )


FILES = {
    "bin/python3.11": b"\x7fELF interpreter",
    "lib/libpython3.11.so.1.0": b"\x7fELF library",
    "lib/python3.11/os.py": b"import sys\n",
    "lib/python3.11/lib-dynload/_ssl.so": b"\x7fELF ssl",
    "lib/python3.11/site-packages/pip.py": b"other installation\n",
    "venv/site-packages/torch/__init__.py": b"version = '2.13.0'\n",
    "venv/site-packages/torch/lib/libtorch.so": bytes(100_000),
    "venv/site-packages/torch/data.json": b"{}",
    "venv/site-packages/torch-2.13.0.dist-info/METADATA": b"Name: torch\n",
    "venv/site-packages/distutils-precedence.pth": b"import os\n",
    "venv/site-packages/torch/__pycache__/__init__.cpython-311.pyc": b"cache",
    "venv/site-packages/sourceless.pyc": b"bytecode",
}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return Machine(base=tmp_path)


def measured(installation: Installation) -> Measurement:
    return node_measurement(installation, sources=(TASK,), role="worker")


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


INSTALLED: dict[str, Callable[[Path], object]] = {
    "a byte in a module": lambda site: flip(site / "torch" / "__init__.py"),
    "a byte in a library": lambda site: flip(site / "torch" / "lib" / "libtorch.so"),
    "a byte in a data file": lambda site: flip(site / "torch" / "data.json"),
    "a byte in a pth file": lambda site: flip(site / "distutils-precedence.pth"),
    "a byte in metadata": lambda site: flip(
        site / "torch-2.13.0.dist-info" / "METADATA"
    ),
    "a byte in a sourceless pyc": lambda site: flip(site / "sourceless.pyc"),
    "a file added": lambda site: (site / "sitecustomize.py").write_bytes(b""),
    "a pth file added": lambda site: (site / "z.pth").write_bytes(b"import evil"),
    "a source in a cache directory": lambda site: (
        site / "torch" / "__pycache__" / "x.py"
    ).write_bytes(b"x"),
    "a file renamed": lambda site: (site / "torch" / "data.json").rename(
        site / "torch" / "data.jsn"
    ),
    "a file removed": lambda site: (site / "torch" / "data.json").unlink(),
    "a file moved": lambda site: (site / "torch" / "data.json").rename(
        site / "data.json"
    ),
    "a link added": lambda site: (site / "tensor").symlink_to("torch"),
    "a byte moved to the next file": lambda site: [
        (site / "torch" / "data.json").write_bytes(b"{"),
        (site / "torch" / "e.json").write_bytes(b"}"),
    ],
}

INTERPRETER: dict[str, Callable[[Path], object]] = {
    "the binary": lambda base: flip(base / "bin" / "python3.11"),
    "the library": lambda base: flip(base / "lib" / "libpython3.11.so.1.0"),
    "the standard library": lambda base: flip(base / "lib" / "python3.11" / "os.py"),
    "an extension module": lambda base: flip(
        base / "lib" / "python3.11" / "lib-dynload" / "_ssl.so"
    ),
}


@pytest.mark.parametrize("change", INSTALLED.values(), ids=INSTALLED.keys())
def test_any_change_of_what_is_installed_changes_the_measurement(
    machine: Machine, change: Callable[[Path], object]
) -> None:
    before = measured(machine.installation())
    change(machine.site)
    after = measured(machine.installation())
    assert after.mr_enclave != before.mr_enclave
    assert after.rtmr0 != before.rtmr0
    assert (after.mrtd, after.rtmr1, after.rtmr2) == (
        before.mrtd,
        before.rtmr1,
        before.rtmr2,
    )


@pytest.mark.parametrize("change", INTERPRETER.values(), ids=INTERPRETER.keys())
def test_any_change_of_the_interpreter_changes_the_measurement(
    machine: Machine, change: Callable[[Path], object]
) -> None:
    before = measured(machine.installation())
    change(machine.base)
    after = measured(machine.installation())
    assert after.mr_enclave != before.mr_enclave
    assert after.mrtd != before.mrtd
    assert after.rtmr0 == before.rtmr0


def test_what_a_node_never_reads_does_not_count(machine: Machine) -> None:
    before = machine.installation()
    cache = machine.site / "torch" / "__pycache__"
    flip(cache / "__init__.cpython-311.pyc")
    (cache / "other.cpython-311.pyc").write_bytes(b"x")
    (machine.standard / "__pycache__").mkdir()
    (machine.standard / "__pycache__" / "os.cpython-311.pyc").write_bytes(b"x")
    flip(machine.standard / "site-packages" / "pip.py")
    assert machine.installation() == before


def test_another_installation_counts_where_it_is_on_the_search_path(
    machine: Machine,
) -> None:
    other = machine.standard / "site-packages"
    before = machine.installation(*machine.search_path, str(other))
    assert before != machine.installation()
    flip(other / "pip.py")
    assert machine.installation(*machine.search_path, str(other)) != before


def test_the_order_of_the_search_path_counts(machine: Machine) -> None:
    in_order = machine.installation()
    shadowing = machine.installation(*reversed(machine.search_path))
    assert shadowing.installed != in_order.installed
    assert shadowing.interpreter == in_order.interpreter


def test_a_zip_that_appears_on_the_search_path_counts(machine: Machine) -> None:
    before = machine.installation()
    (machine.base / "lib" / "python311.zip").write_bytes(b"PK")
    assert machine.installation().installed != before.installed


def test_where_it_is_installed_does_not_count(machine: Machine, tmp_path: Path) -> None:
    before = machine.installation()
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    tmp_path.rename(moved)
    assert Machine(base=moved).installation() == before


def test_files_and_bytes_are_counted(machine: Machine) -> None:
    installation = machine.installation()
    counted = {
        name: content
        for name, content in FILES.items()
        if "__pycache__" not in name and "pip.py" not in name
    }
    assert installation.interpreter_files == 4
    assert installation.installed_files == len(counted) - 4
    # The unit is bytes; every file counts once.
    assert installation.total_bytes == sum(map(len, counted.values()))


@pytest.mark.parametrize("entry", ["", ".", "lib"])
def test_a_search_path_that_depends_on_the_directory_is_refused(
    machine: Machine, entry: str
) -> None:
    with pytest.raises(PlatformError) as refusal:
        machine.installation(*machine.search_path, entry)
    assert refusal.value.code == "search-path-relative"
    assert "-I" in refusal.value.remedy


def test_an_interpreter_that_is_missing_is_refused(machine: Machine) -> None:
    machine.interpreter.executable.unlink()
    with pytest.raises(PlatformError):
        machine.installation()


def test_one_byte_of_the_task_changes_the_measurement(machine: Machine) -> None:
    installation = machine.installation()
    before = node_measurement(installation, sources=(TASK,), role="worker")
    after = node_measurement(installation, sources=(TASK + b" ",), role="worker")
    assert after.mr_enclave != before.mr_enclave
    assert after.rtmr2 != before.rtmr2
    assert (after.mrtd, after.rtmr0, after.rtmr1) == (
        before.mrtd,
        before.rtmr0,
        before.rtmr1,
    )


@pytest.mark.parametrize(
    "sources",
    [
        (),
        (TASK, STRATEGY + b" "),
        (STRATEGY, TASK),
        (TASK + STRATEGY,),
        (TASK + STRATEGY, b""),
        (TASK, STRATEGY, b""),
        (TASK + STRATEGY[:1], STRATEGY[1:]),
        (TASK, b""),
        (TASK,),
    ],
)
def test_every_source_counts_and_where_it_ends(
    machine: Machine, sources: tuple[bytes, ...]
) -> None:
    installation = machine.installation()
    both = node_measurement(installation, sources=(TASK, STRATEGY), role="server")
    other = node_measurement(installation, sources=sources, role="server")
    assert other.mr_enclave != both.mr_enclave
    assert other.rtmr2 != both.rtmr2
    assert other.rtmr1 == both.rtmr1


def test_no_role_can_pose_as_another(machine: Machine) -> None:
    installation = machine.installation()
    made = [
        node_measurement(installation, sources=(TASK,), role=role) for role in ROLES
    ]
    assert get_args(Role) == ROLES
    assert len({it.mr_enclave for it in made}) == len(ROLES)
    assert len({it.rtmr1 for it in made}) == len(ROLES)
    assert len({it.mr_signer for it in made}) == 1


@pytest.mark.parametrize("role", ["", "Server", "custodian"])
def test_another_role_is_refused(machine: Machine, role: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        node_measurement(machine.installation(), sources=(TASK,), role=role)
    assert refusal.value.code == "role-unknown"


def test_measurements_have_the_lengths_of_the_hardware(machine: Machine) -> None:
    made = measured(machine.installation())
    assert {len(made.mr_enclave), len(made.mr_signer)} == {32}
    assert {len(made.mrtd), len(made.rtmr0), len(made.rtmr1), len(made.rtmr2)} == {48}
    assert len({made.mrtd, made.rtmr0, made.rtmr1, made.rtmr2}) == 4


def test_the_running_interpreter_is_found() -> None:
    found = running_interpreter()
    assert found.executable.is_file()
    assert not found.executable.is_symlink()
    assert (found.standard_library / "os.py").is_file()
    assert all(library.is_file() for library in found.libraries)
    assert str(found.standard_library) in sys.path
