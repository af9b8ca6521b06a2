from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from cloister.errors import PlatformError
from cloister.workloads.precision import (
    check_capabilities,
    check_precision,
    has_fast_bfloat16,
    is_fast,
)

# What `torch.cpu.get_capabilities` says of CPUs of four kinds, as far as it matters.
SAPPHIRE_RAPIDS = {"amx_tile": True, "amx_bf16": True, "avx512_bf16": True}
ZEN_4 = {"amx_tile": False, "amx_bf16": False, "avx512_bf16": True}
ICE_LAKE = {"avx512_f": True, "amx_bf16": False, "avx512_bf16": False}
INTEGERS_ONLY = {"amx_tile": True, "amx_int8": True, "amx_bf16": False}


@pytest.mark.parametrize("capabilities", [SAPPHIRE_RAPIDS, ZEN_4])
def test_amx_or_avx_512_bf16_is_enough(capabilities: dict[str, bool]) -> None:
    assert is_fast(capabilities)
    check_capabilities(capabilities)


@pytest.mark.parametrize("capabilities", [ICE_LAKE, INTEGERS_ONLY, {}])
def test_a_cpu_without_bfloat16_instructions_is_refused(
    capabilities: dict[str, bool],
) -> None:
    assert not is_fast(capabilities)
    with pytest.raises(PlatformError, match="float32") as caught:
        check_capabilities(capabilities)
    assert caught.value.code == "precision-unsupported"


def test_without_pytorch_nobody_can_say_so_it_is_refused() -> None:
    with pytest.raises(PlatformError, match="no PyTorch") as caught:
        check_capabilities(None)
    assert caught.value.code == "precision-unsupported"


def test_this_machines_answer_is_the_one_it_gives_to_pytorch() -> None:
    assert has_fast_bfloat16() == is_fast(torch.cpu.get_capabilities())
    check_precision("float32")
    if has_fast_bfloat16():
        check_precision("bfloat16")
    else:
        with pytest.raises(PlatformError):
            check_precision("bfloat16")


def test_importing_it_leaves_pytorch_alone() -> None:
    program = "import sys, cloister.workloads.precision; print('torch' in sys.modules)"
    ran = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-I", "-c", program], capture_output=True, check=True
    )
    assert ran.stdout.strip() == b"False"
