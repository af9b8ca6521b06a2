"""How a node's interpreter is started: isolated, from source, with a clean environment.

Variables decide what a process does before its first line runs: `PYTHONPATH` adds code,
`SSLKEYLOGFILE` and `GRPC_TRACE` give plaintext away, `https_proxy` diverts channels. So
a node starts with an allow-list and nothing else. And byte code in ``__pycache__`` is
not measured, so a node neither reads nor writes it: what runs is compiled from the
source that was measured.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

import msgspec

from cloister.errors import PlatformError

# A prefix under a file can hold no directory: no byte code is found or made.
_NO_BYTECODE = "/dev/null/no-bytecode"
_FLAGS = ("-I", "-B", "-X", f"pycache_prefix={_NO_BYTECODE}")

# What every node's environment is, whatever the caller's was. The first is explained in
# `cloister.ratls.channels.TLS13_ONLY`, which a test holds equal; it is repeated because
# importing that module imports grpc, and then it would be too late.
#
# PyTorch's compiler keeps what it made in /tmp, unpickles it from there in the next
# process and loads it as code: code of the host's disk, which nobody measured. So it is
# off. That alone is not enough: `torch.compile`, every optimiser and `torch.export`
# look into that directory nonetheless, and evaluate settings that they find in it. So
# the directory is one of the kernel's, where nobody can put a file.
NODE_ENVIRONMENT = {
    "GRPC_SSL_CIPHER_SUITES": "ECDHE-RSA-AES128-GCM-SHA256",
    "GRPC_VERBOSITY": "NONE",
    "LC_ALL": "C.UTF-8",
    "TORCHINDUCTOR_CACHE_DIR": "/proc/self/task",
    "TORCH_COMPILE_DISABLE": "1",
    "TZ": "UTC",
}


def node_command(arguments: Sequence[str]) -> list[str]:
    """Returns the command line that runs ``cloister ARGUMENTS`` as a node."""
    return [sys.executable, *_FLAGS, "-m", "cloister", *arguments]


def become_node() -> None:
    """Replaces this process by the same command in a node's interpreter.

    Returns only when this already is one, and is hardened; nothing heavy may be
    imported before.

    Raises:
        PlatformError: If the fresh process still is not clean, or cannot be hardened.
    """
    if _is_node(os.environ):
        # Not before: execve makes a process dumpable again. And what this imports may
        # read the environment, which is clean by now.
        from cloister.cli.hardening import harden_process  # noqa: PLC0415
        from cloister.federation.allocator import settle_allocator  # noqa: PLC0415

        harden_process()
        settle_allocator()
        return
    if sys.flags.isolated and sys.pycache_prefix == _NO_BYTECODE:
        raise PlatformError(
            "the environment of a node cannot be cleaned",
            code="environment-unclean",
            expected=f"only {', '.join(NODE_ENVIRONMENT)}",
            got=", ".join(sorted(set(os.environ) - set(NODE_ENVIRONMENT))),
        )
    sys.stdout.flush()
    sys.stderr.flush()
    command = node_command(sys.argv[1:])
    os.execve(command[0], command, NODE_ENVIRONMENT)  # noqa: S606 - our interpreter


def isolated_path() -> tuple[str, ...]:
    """Returns `sys.path` as a node would have it.

    Raises:
        PlatformError: If the interpreter does not start.
    """
    script = "import json, sys; print(json.dumps(sys.path))"
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter
            [sys.executable, *_FLAGS, "-c", script],
            env=NODE_ENVIRONMENT,
            capture_output=True,
            check=True,
            timeout=60,
        )
        return msgspec.json.decode(done.stdout, type=tuple[str, ...])
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
        raise PlatformError(
            "the interpreter cannot be started as a node",
            code="interpreter-unusable",
            expected=f"{sys.executable} {' '.join(_FLAGS)}",
            got=type(error).__name__,
        ) from error


def _is_node(environment: Mapping[str, str]) -> bool:
    return (
        bool(sys.flags.isolated)
        and bool(sys.flags.dont_write_bytecode)
        and sys.pycache_prefix == _NO_BYTECODE
        and dict(environment) == NODE_ENVIRONMENT
    )
