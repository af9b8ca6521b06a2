"""What a node will run, as the measurements a platform quotes.

Covered are the interpreter's binary, its shared library, the standard library and
every file in every directory on the module search path: packages, ``.pth`` files,
extension modules, data and metadata. The plan's sources (the task's file, and that of
the plan's own strategy if there is one) and the node's role come on top.
The plan is never part: it names the measurements, so that would be circular.

Not covered, and so part of the platform rather than of the node: the C library and
other libraries of the operating system; code that an editable install's import hook
loads from outside the search path (a ``.pth`` with a plain path is covered, for its
directory is on the search path).

The same values stand for SGX (one MRENCLAVE) and TDX (MRTD and RTMR0-2).
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cloister.attestation.platforms.installed_files import (
    Entry,
    Hashed,
    encode_entries,
    hash_files,
    length_prefixed,
    list_entries,
)
from cloister.errors import ConfigError, PlatformError

# Domain labels; a change of what is measured, or how, changes the number.
_INTERPRETER_LABEL = b"cloister measured interpreter 1"
_INSTALLED_LABEL = b"cloister measured installation 1"
_ENCLAVE_LABEL = b"cloister enclave 2"
_SIGNER_LABEL = b"cloister simulated enclave signer 1"
_MRTD_LABEL = b"cloister mrtd interpreter 1"
_RTMR0_LABEL = b"cloister rtmr0 installation 1"
_RTMR1_LABEL = b"cloister rtmr1 role 1"
_RTMR2_LABEL = b"cloister rtmr2 sources 2"

ROLES = ("server", "worker", "recipient")
ISV_PROD_ID = 1
ISV_SVN = 1

# Below the standard library, but another installation's: it counts where it is itself
# on the search path.
_NOT_STANDARD = frozenset({"site-packages", "dist-packages"})
_MEMORY_MAP = Path("/proc/self/maps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """Where one Python interpreter lies.

    Attributes:
        executable: The binary itself, no link.
        libraries: Its shared library, if it has one.
        standard_library: Directory of the standard library.
    """

    executable: Path
    libraries: tuple[Path, ...]
    standard_library: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """Everything a node of this machine will run, except the plan's sources.

    Attributes:
        interpreter: SHA-256 over interpreter and standard library, 32 bytes.
        installed: SHA-256 over the rest of the search path, 32 bytes.
        interpreter_files: How many files the first covers.
        installed_files: How many files the second covers.
        total_bytes: Size of all of them.
    """

    interpreter: bytes
    installed: bytes
    interpreter_files: int
    installed_files: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What a platform quotes for one role under one plan's sources.

    Attributes:
        role: The role measured.
        mr_enclave: SGX: everything, 32 bytes.
        mr_signer: SGX: who signed the enclave, 32 bytes; here the same for all.
        isv_prod_id: SGX: product number.
        isv_svn: SGX: product's security version.
        mrtd: TDX: the interpreter, 48 bytes.
        rtmr0: TDX: installed files, 48 bytes.
        rtmr1: TDX: the role, 48 bytes.
        rtmr2: TDX: the plan's sources, 48 bytes.
    """

    role: str
    mr_enclave: bytes
    mr_signer: bytes
    isv_prod_id: int
    isv_svn: int
    mrtd: bytes
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes


def running_interpreter() -> Interpreter:
    """Returns the interpreter of this process, which nodes are started with.

    Raises:
        PlatformError: If the process cannot see its own memory map.
    """
    try:
        lines = _MEMORY_MAP.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise PlatformError(
            "the interpreter's libraries cannot be listed",
            code="measurement-unsupported",
            expected=str(_MEMORY_MAP),
            remedy="nodes run on Linux with /proc mounted",
        ) from error
    # The build's configuration says whether there may be a shared library; only the
    # map says which file really is in use.
    mapped = {Path(line[line.index("/") :]) for line in lines if "/" in line}
    return Interpreter(
        executable=Path(sys.executable).resolve(),
        libraries=tuple(
            sorted(path for path in mapped if path.name.startswith("libpython"))
        ),
        standard_library=Path(sysconfig.get_path("stdlib")).resolve(),
    )


def measure_installation(
    *, interpreter: Interpreter, search_path: Sequence[str]
) -> Installation:
    """Returns the digests of all that a node will run, except the plan's sources.

    Args:
        interpreter: See `running_interpreter`.
        search_path: `sys.path` as an isolated interpreter (``-I``) has it at its start,
            in that order, which decides what shadows what.

    Raises:
        PlatformError: If a file cannot be read, or the search path is not absolute.
    """
    standard = list_entries(interpreter.standard_library, leave_out=_NOT_STANDARD)
    binaries = [
        Entry(path=path.name.encode(), link=b"", file=str(path))
        for path in (interpreter.executable, *interpreter.libraries)
    ]
    roots = [_search_root(entry, interpreter.standard_library) for entry in search_path]
    installed = [entry for root in roots for entry in root.entries]
    files = [entry.file for entry in (*standard, *binaries, *installed) if entry.file]
    hashed = hash_files(files)
    return Installation(
        interpreter=hashlib.sha256(
            length_prefixed(
                _INTERPRETER_LABEL,
                encode_entries(binaries, hashed),
                encode_entries(standard, hashed),
            )
        ).digest(),
        installed=hashlib.sha256(
            length_prefixed(_INSTALLED_LABEL, *(root.encoded(hashed) for root in roots))
        ).digest(),
        interpreter_files=len(binaries) + len(standard),
        installed_files=len(installed),
        total_bytes=sum(value.size for value in hashed.values()),
    )


def node_measurement(
    installation: Installation, *, sources: Sequence[bytes], role: str
) -> Measurement:
    """Returns what a platform will quote for a node.

    The role is part of it: a worker's enclave cannot pose as the server's, although
    both run the same files.

    Args:
        installation: What is installed.
        sources: The files that stand beside the plan and run, byte for byte: the
            task's, then the own strategy's if the plan has one. How many there are is
            part of the measurement, and where each ends.
        role: One of `ROLES`.

    Raises:
        ConfigError: If the role is another one.
    """
    if role not in ROLES:
        raise ConfigError(
            "role cannot be measured",
            code="role-unknown",
            expected=", ".join(ROLES),
            got=repr(role),
        )
    run = hashlib.sha256(length_prefixed(*sources)).digest()
    entry_point = role.encode()
    whole = (installation.interpreter, installation.installed, entry_point, run)
    return Measurement(
        role=role,
        mr_enclave=hashlib.sha256(length_prefixed(_ENCLAVE_LABEL, *whole)).digest(),
        mr_signer=hashlib.sha256(_SIGNER_LABEL).digest(),
        isv_prod_id=ISV_PROD_ID,
        isv_svn=ISV_SVN,
        mrtd=_register(_MRTD_LABEL, installation.interpreter),
        rtmr0=_register(_RTMR0_LABEL, installation.installed),
        rtmr1=_register(_RTMR1_LABEL, entry_point),
        rtmr2=_register(_RTMR2_LABEL, *sources),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _SearchRoot:
    """One entry of the search path: a part of the standard library, or its own."""

    standard: bytes
    entries: tuple[Entry, ...]

    def encoded(self, hashed: dict[str, Hashed]) -> bytes:
        return length_prefixed(self.standard, encode_entries(self.entries, hashed))


def _search_root(entry: str, standard_library: Path) -> _SearchRoot:
    path = Path(entry)
    if not path.is_absolute():
        raise PlatformError(
            "module search path depends on the working directory",
            code="search-path-relative",
            expected="absolute paths only",
            got=repr(entry),
            remedy="start the interpreter isolated, with -I",
        )
    real = path.resolve()
    if real.is_relative_to(standard_library):
        inside = real.relative_to(standard_library)
        if not _NOT_STANDARD.intersection(inside.parts[:1]):
            # Its files are in the interpreter's digest; here only its place counts.
            return _SearchRoot(standard=b"/" + bytes(inside), entries=())
    return _SearchRoot(standard=b"", entries=tuple(list_entries(real)))


def _register(label: bytes, *content: bytes) -> bytes:
    return hashlib.sha384(length_prefixed(label, *content)).digest()
