"""Whether this CPU computes in bfloat16 faster than in float32.

It does with AMX or AVX-512 BF16. Without them PyTorch emulates bfloat16: a plan that
wants it for speed would train several times slower, so it is refused instead.

PyTorch is asked, and not the operating system: in an enclave there is no `/proc` to be
trusted, and the arithmetic is PyTorch's. The answer is about speed alone; a host that
lies about its CPU gains nothing but a slow or broken run. This module does not decide
which layers compute in bfloat16; `torch.autocast` does.

Importing it does not import PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Final

from cloister.errors import PlatformError
from cloister.federation.task import Precision

# As `torch.cpu.get_capabilities` names them.
_FAST: Final = ("amx_bf16", "avx512_bf16")

Capabilities = Mapping[str, object]


def has_fast_bfloat16() -> bool:
    """Returns whether to propose bfloat16 for training on this machine.

    False too where PyTorch is not installed: nothing is known of the CPU then, and
    float32 is right everywhere. Imports PyTorch, which takes a second or two.
    """
    capabilities = _cpu_capabilities()
    return capabilities is not None and is_fast(capabilities)


def check_precision(precision: Precision) -> None:
    """Refuses to train in a precision that this machine has no instructions for.

    Args:
        precision: The plan's. With float32 nothing is asked of the machine.

    Raises:
        PlatformError: If it is bfloat16 and the CPU has neither AMX nor AVX-512 BF16,
            or PyTorch is not there to say so (``precision-unsupported``).
    """
    if precision == "bfloat16":
        check_capabilities(_cpu_capabilities())


def check_capabilities(capabilities: Capabilities | None) -> None:
    """Refuses a CPU that has no bfloat16 instructions.

    Args:
        capabilities: As `torch.cpu.get_capabilities` gives them; None where PyTorch is
            not installed.

    Raises:
        PlatformError: If it has none, or nobody can say (``precision-unsupported``).
    """
    if capabilities is None:
        got = "no PyTorch here that could say"
        remedy = "Install cloister[torch], or set precision = 'float32' in the plan."
    elif not is_fast(capabilities):
        got = "neither of them; bfloat16 would be emulated, slower than float32"
        remedy = "Use another machine, or set precision = 'float32' in the plan."
    else:
        return
    raise PlatformError(
        "the plan trains in bfloat16, and this CPU has no instructions for it",
        code="precision-unsupported",
        expected="AMX or AVX-512 BF16",
        got=got,
        remedy=remedy,
    )


def is_fast(capabilities: Capabilities) -> bool:
    """Returns whether a CPU with these capabilities is fast in bfloat16."""
    return any(capabilities.get(name) is True for name in _FAST)


def _cpu_capabilities() -> Capabilities | None:
    """Returns what PyTorch sees of the CPU; None where it is not installed."""
    if find_spec("torch") is None:
        return None
    # Not at the top: `cloister init --help` must not wait for PyTorch.
    import torch.cpu  # noqa: PLC0415

    capabilities: Capabilities = torch.cpu.get_capabilities()
    return capabilities
