"""Core dumps, ptrace and swap, asked of the kernel from outside the process."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.support.recorded_log import RecordedLog

from cloister.cli.hardening import refuse_swap, warn_of_swap
from cloister.cli.interpreter import NODE_ENVIRONMENT, node_command
from cloister.errors import PlatformError

LIMIT_SECONDS = 60.0
SWAPS_HEADER = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
SWAPS = (
    SWAPS_HEADER
    + "/dev/sda2                               partition\t2097148\t0\t-2\n"
    + "/swap\\040file                          file\t\t1048572\t512\t-3\n"
)

# Every child imports what it needs first: as another user it may not read the files.
IMPORTS = """
import ctypes, errno, json, os, resource, signal, subprocess, sys
from pathlib import Path
from cloister.cli.hardening import harden_process
from cloister.cli.interpreter import become_node
from cloister.errors import PlatformError
libc = ctypes.CDLL(None, use_errno=True)

def say(value):
    print(json.dumps(value), flush=True)

def drop_root():
    # Who is root already may read everything. A change of user makes a process
    # undumpable by itself, so that is undone: only hardening shall count.
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        libc.prctl(4, 1, 0, 0, 0)

def have_core_dumps():
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
"""

# Makes the kernel answer a system call of this process with an error number (0: with
# success, without doing anything), where its first argument is `argument`.
SECCOMP = """
import struct
CALLS = {"x86_64": {"prctl": 157, "prlimit64": 302},
         "aarch64": {"prctl": 167, "prlimit64": 261}}[os.uname().machine]

def deny(call, argument, answer):
    filters = b"".join(struct.pack("=HBBI", *it) for it in [
        (0x20, 0, 0, 0),                    # the call's number
        (0x15, 0, 3, CALLS[call]),
        (0x20, 0, 0, 16),                   # its first argument
        (0x15, 0, 1, argument),
        (0x06, 0, 0, 0x00050000 | answer),  # an error
        (0x06, 0, 0, 0x7FFF0000),           # let it pass
    ])
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filters", ctypes.c_char_p)]
    program = Program(len(filters) // 8, filters)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # no new privileges
    assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0, ctypes.get_errno()

def outcome():
    try:
        harden_process(gramine_directory=Path(sys.argv[1]))
    except PlatformError as error:
        return error.code
    return "hardened"
"""


# A node's interpreter reads no byte code, which takes a while.
NODE = node_command([])[:-2]
QUICK = [sys.executable, "-I"]


def answers(
    script: str, *arguments: str, interpreter: Sequence[str] = QUICK
) -> list[object]:
    """Runs a script to its end; returns what it said."""
    done = subprocess.run(  # noqa: S603 - our own program
        [*interpreter, "-c", IMPORTS + script, *arguments],
        env=NODE_ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_SECONDS,
    )
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def core_limits(pid: int) -> list[str]:
    limits = Path(f"/proc/{pid}/limits").read_text()
    found = re.search(r"^Max core file size\s+(\S+)\s+(\S+)", limits, re.MULTILINE)
    assert found
    return list(found.groups())


def test_a_node_that_runs_may_leave_no_core_file(tmp_path: Path) -> None:
    """A real node, in the environment of whoever starts it, while it reads its plan."""
    plan, errors = tmp_path / "plan.toml", tmp_path / "stderr"
    os.mkfifo(plan)
    with (
        errors.open("w") as stderr,
        subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "cloister", "server", "--plan", str(plan)],
            stdin=subprocess.DEVNULL,
            stderr=stderr,
        ) as process,
    ):
        try:
            writer = open_when_read(plan, process)
            assert core_limits(process.pid) == ["0", "0"]
            os.close(writer)
            assert process.wait(LIMIT_SECONDS) == 2, errors.read_text()
        finally:
            process.kill()


def open_when_read(fifo: Path, process: subprocess.Popen[bytes]) -> int:
    """Opens a FIFO for writing once the process has opened it for reading."""
    for _ in range(int(LIMIT_SECONDS / 0.05)):
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nobody reads it yet
                raise
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail("the node ended before it read its plan")
    pytest.fail("no plan was read in time")


def test_becoming_a_node_hardens_the_process() -> None:
    script = """
have_core_dumps()
say(libc.prctl(3, 0, 0, 0, 0))
become_node()
say(libc.prctl(3, 0, 0, 0, 0))
say(resource.getrlimit(resource.RLIMIT_CORE))
"""
    assert answers(script, interpreter=NODE) == [1, 0, [0, 0]]


# What another process of the same user tries, on a target that said it is ready.
INTRUDER = """
target = subprocess.Popen(
    [*sys.orig_argv[:sys.orig_argv.index("-c") + 1], sys.argv[1]],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE)
target.stdout.readline()
drop_root()
def attempt(what):
    try:
        what()
    except OSError as error:
        return error.errno
    return 0
def attach():
    if libc.ptrace(16, target.pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(target.pid, 0)
    libc.ptrace(17, target.pid, None, None)
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
libc.ptrace.restype = ctypes.c_long
proc = Path(f"/proc/{target.pid}")
say([os.getuid() == proc.stat().st_uid if sys.argv[2] == "plain" else os.getuid() != 0,
     attempt(attach),
     attempt(lambda: (proc / "mem").open("rb").close()),
     attempt(lambda: (proc / "environ").open("rb").read())])
target.stdin.close()
target.wait()
"""
TARGET = """
drop_root()
{harden}
say("ready")
sys.stdin.read()
"""


def test_another_process_of_the_same_user_reads_nothing_of_a_hardened_one() -> None:
    target = IMPORTS + TARGET.format(harden="harden_process()")
    denied = [True, errno.EPERM, errno.EACCES, errno.EACCES]
    assert answers(INTRUDER, target, "hardened") == [denied]


def test_it_reads_everything_of_a_process_that_is_not() -> None:
    """Without this the test above would say nothing; if this machine allows ptrace."""
    yama = Path("/proc/sys/kernel/yama/ptrace_scope")
    target = IMPORTS + TARGET.format(harden="")
    said = answers(INTRUDER, target, "plain")
    if not yama.exists() or int(yama.read_text()) < 2:
        assert said == [[True, 0, 0, 0]]


def test_a_hardened_process_still_reads_what_a_node_reads_of_itself() -> None:
    script = """
drop_root()
harden_process()
say("python" in Path("/proc/self/maps").read_text())
say(len(os.listdir("/proc/self/fd")) > 0)
"""
    assert answers(script) == [True, True]


CRASH = """
have_core_dumps()
{harden}
os.kill(os.getpid(), signal.SIGSEGV)
"""


def status_of_crash(directory: Path, *, harden: str) -> int:
    """Lets a process crash in a directory; returns its wait status."""
    # The shell that changes the directory is replaced, so the status is the crash's.
    command = [*QUICK, "-c", IMPORTS + CRASH.format(harden=harden)]
    arguments = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', str(directory), *command]
    pid = os.posix_spawn("/bin/sh", arguments, NODE_ENVIRONMENT)
    return os.waitpid(pid, 0)[1]


def dumped(status: int) -> bool:
    return os.WIFSIGNALED(status) and os.WCOREDUMP(status)


def test_a_hardened_process_that_crashes_leaves_nothing(tmp_path: Path) -> None:
    status = status_of_crash(tmp_path, harden="harden_process()")
    assert os.WTERMSIG(status) == 11
    assert not dumped(status)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_is_not_hardened_leaves_a_core_file(tmp_path: Path) -> None:
    """Without this the test above would say nothing; if this machine writes any."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    status = status_of_crash(tmp_path, harden="")
    assert os.WTERMSIG(status) == 11
    if hard != 0 and not pattern.startswith(("|", "/")):
        assert dumped(status)
        assert len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def enclave(tmp_path: Path) -> Path:
    directory = tmp_path / "enclave"
    directory.mkdir()
    (directory / "attestation_type").write_text("dcap")
    return directory


@pytest.mark.parametrize(
    ("number", "place", "expected"),
    [
        (errno.ENOSYS, "enclave", "hardened"),
        (errno.ENOSYS, "no-enclave", "hardening-failed"),
        (errno.EPERM, "enclave", "hardening-failed"),
        (errno.EINVAL, "enclave", "hardening-failed"),
        # The kernel says yes, and the process is dumpable all the same.
        (0, "enclave", "hardening-failed"),
    ],
)
def test_a_process_that_stays_dumpable_goes_no_further(
    enclave: Path, number: int, place: str, expected: str
) -> None:
    script = f"""
deny("prctl", 4, {number})
say(outcome())
say(resource.getrlimit(resource.RLIMIT_CORE))
"""
    directory = enclave.with_name(place)
    assert answers(SECCOMP + script, str(directory)) == [expected, [0, 0]]


@pytest.mark.parametrize("kind", ["", "none", "epid", "dcap\0"])
def test_an_enclave_is_one_with_attestation(enclave: Path, kind: str) -> None:
    (enclave / "attestation_type").write_text(kind)
    script = f'deny("prctl", 4, {errno.ENOSYS}); say(outcome())'
    assert answers(SECCOMP + script, str(enclave)) == ["hardening-failed"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_a_process_that_may_dump_core_goes_no_further(
    enclave: Path, number: int
) -> None:
    script = f'deny("prlimit64", 0, {number}); say(outcome())'
    assert answers(SECCOMP + script, str(enclave)) == ["hardening-failed"]


@pytest.fixture
def swaps(tmp_path: Path) -> Path:
    return tmp_path / "swaps"


def refusal(swaps: Path) -> PlatformError:
    log = RecordedLog()
    with pytest.raises(PlatformError) as caught:
        refuse_swap(swaps, log=log.logger())
    assert log.events == []
    return caught.value


def test_a_machine_that_swaps_is_refused_by_the_names_of_its_devices(
    swaps: Path,
) -> None:
    swaps.write_text(SWAPS)
    error = refusal(swaps)
    assert error.code == "swap-in-use"
    assert error.got == "/dev/sda2, /swap\\040file"
    assert "swapoff -a" in error.remedy


def test_a_machine_without_swap_goes_on(swaps: Path) -> None:
    log = RecordedLog()
    swaps.write_text(SWAPS_HEADER)
    refuse_swap(swaps, log=log.logger())
    assert [event["event"] for event in log.events] == ["swap-absent"]


def test_a_kernel_that_cannot_swap_goes_on(swaps: Path) -> None:
    log = RecordedLog()
    swaps.with_name("meminfo").write_text("MemTotal: 1 kB\n")
    refuse_swap(swaps, log=log.logger())
    warn_of_swap(swaps, log=log.logger())
    assert [event["event"] for event in log.events] == ["swap-absent"]


@pytest.mark.parametrize(
    "content", ["", "\n", "none\n", SWAPS.partition("\n")[2], "x" * 300_000]
)
def test_a_list_that_says_nothing_is_not_taken_for_an_empty_one(
    swaps: Path, content: str
) -> None:
    swaps.write_text(content)
    assert refusal(swaps).code == "swap-unknown"


def test_a_missing_list_is_not_taken_for_an_empty_one(swaps: Path) -> None:
    assert refusal(swaps).code == "swap-unknown"
    swaps.mkdir()
    assert refusal(swaps).code == "swap-unknown"


def test_no_bytes_in_the_list_are_an_internal_error(swaps: Path) -> None:
    swaps.write_bytes(SWAPS_HEADER.encode() + b"\xff\xfe \xff\n")
    assert refusal(swaps).code == "swap-in-use"


def test_a_simulated_machine_is_told_what_hardware_would_be_refused_for(
    swaps: Path,
) -> None:
    log = RecordedLog()
    warn_of_swap(swaps, log=log.logger())
    swaps.write_text(SWAPS)
    warn_of_swap(swaps, log=log.logger())
    swaps.write_text(SWAPS_HEADER)
    warn_of_swap(swaps, log=log.logger())
    unknown, in_use = log.events
    assert unknown["event"] == "swap-unknown"
    assert in_use["event"] == "swap-in-use"
    assert in_use["devices"] == ("/dev/sda2", "/swap\\040file")
    assert {unknown["level"], in_use["level"]} == {"warning"}


def test_the_kernels_own_list_can_be_read() -> None:
    log = RecordedLog()
    warn_of_swap(log=log.logger())
    assert log.named("swap-unknown") == []
