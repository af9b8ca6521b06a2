"""What a process that holds keys does to itself: no core dumps, no ptrace, no swap.

Another process of the same user could attach with ptrace or read `/proc/PID/mem`, a
crash would write all memory to the disk, and swap writes it there a page at a time.
Here the kernel is told not to.

This holds against other users and other programs in the same kernel, not against root
in it: root may still read any process. Python cannot wipe memory either.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import resource
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from cloister.attestation.platforms.gramine import (
    GRAMINE_DIRECTORY,
    open_gramine_platform,
)
from cloister.errors import PlatformError

SWAPS = Path("/proc/swaps")

# Numbers of <linux/prctl.h>.
_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4
# The kernel allows 32 swap devices at most, each with a path of up to 4 kB.
_MAX_SWAPS_BYTES = 256 * 1024
_SWAPS_HEADER = re.compile(r"Filename\s+Type\s+Size\s+Used\s+Priority\s*")


def harden_process(*, gramine_directory: Path = GRAMINE_DIRECTORY) -> None:
    """Turns off core dumps of this process, and reading its memory from outside.

    Steps: (1) no core file, however the limit was set before; (2) the process is not
    dumpable, which also ends ptrace and `/proc/PID/mem` for its own user, and core
    dumps that go to a program, for which step 1 does not count. Both are read back.

    In an SGX enclave step 2 may be missing: Gramine has no prctl, and the host cannot
    read the enclave's memory anyway. So a missing call is accepted there, and nothing
    else is.

    Args:
        gramine_directory: Where an enclave under Gramine is recognised.

    Raises:
        PlatformError: If either does not hold.
    """
    # Step 1: no core file
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        limits = resource.getrlimit(resource.RLIMIT_CORE)
    except (OSError, ValueError) as error:
        raise _not_hardened("core dumps are off", str(error)) from error
    if limits != (0, 0):
        raise _not_hardened("core dumps are off", f"limits {limits}")
    # Step 2: not dumpable
    failed = _prctl(_PR_SET_DUMPABLE, 0)[1]
    if failed == errno.ENOSYS:
        _require_enclave(gramine_directory)
        return
    if failed:
        raise _not_hardened("a process that is not dumpable", os.strerror(failed))
    dumpable, failed = _prctl(_PR_GET_DUMPABLE, 0)
    if failed or dumpable != 0:
        raise _not_hardened("a process that is not dumpable", f"state {dumpable}")


def refuse_swap(swaps: Path = SWAPS, *, log: FilteringBoundLogger) -> None:
    """Refuses a machine that swaps; for a trust domain on hardware.

    A TD's memory is encrypted, its disk is the host's. The kernel is asked once, so
    swap that root turns on later is not noticed. Swap in compressed memory is refused
    as well: it may have a disk behind it.

    Args:
        swaps: The kernel's list.
        log: Is told that there is none.

    Raises:
        PlatformError: If swap is on, or the kernel does not say.
    """
    devices = _swap_devices(swaps)
    if devices:
        raise PlatformError(
            "this machine swaps memory to its disk, where the host can read it",
            code="swap-in-use",
            expected="no swap",
            got=", ".join(devices),
            remedy="Turn it off with `swapoff -a`, and in /etc/fstab for good.",
        )
    log.info("swap-absent")


def warn_of_swap(swaps: Path = SWAPS, *, log: FilteringBoundLogger) -> None:
    """Says in the log what `refuse_swap` would refuse; for simulated trust domains."""
    try:
        devices = _swap_devices(swaps)
    except PlatformError as error:
        log.warning(error.code, reason=str(error))
        return
    if devices:
        log.warning(
            "swap-in-use", devices=devices, reason="on hardware it would be refused"
        )


def _swap_devices(path: Path) -> tuple[str, ...]:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_SWAPS_BYTES + 1)
    except FileNotFoundError as error:
        # A kernel built without swap has no list. It must not be mistaken for a
        # machine without /proc.
        if path.with_name("meminfo").exists():
            return ()
        raise _swap_unknown(path, "no such file, and no meminfo beside it") from error
    except OSError as error:
        raise _swap_unknown(path, error.strerror or "an error") from error
    if len(content) > _MAX_SWAPS_BYTES:
        raise _swap_unknown(path, "a longer one")
    header, *lines = content.decode(errors="replace").split("\n")
    # A container may hide the list behind an empty file.
    if not _SWAPS_HEADER.fullmatch(header):
        raise _swap_unknown(path, "another file")
    return tuple(line.split()[0] for line in lines if line.strip())


def _prctl(option: int, argument: int) -> tuple[int, int]:
    """Returns what prctl answered, and the error number or zero."""
    function = ctypes.CDLL(None, use_errno=True).prctl
    function.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
    function.restype = ctypes.c_int
    answer: int = function(option, argument, 0, 0, 0)
    return answer, ctypes.get_errno() if answer < 0 else 0


def _require_enclave(directory: Path) -> None:
    try:
        open_gramine_platform(directory)
    except PlatformError as error:
        raise _not_hardened(
            "a process that is not dumpable", "a kernel without prctl, and no enclave"
        ) from error


def _not_hardened(expected: str, got: str) -> PlatformError:
    return PlatformError(
        "this process cannot keep others from reading its memory",
        code="hardening-failed",
        expected=expected,
        got=got,
        remedy="Let it call setrlimit and prctl; a seccomp filter may forbid them.",
    )


def _swap_unknown(path: Path, got: str) -> PlatformError:
    return PlatformError(
        f"it is not known whether this machine swaps: {path} does not say",
        code="swap-unknown",
        expected="the kernel's list of swap devices",
        got=got,
        remedy="Mount /proc as it is, also inside a container.",
    )
