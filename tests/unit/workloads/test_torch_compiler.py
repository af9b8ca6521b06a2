"""PyTorch's compiler in a node: off, and deaf to what lies on the host's disk.

What is planted here is what PyTorch 2.13 evaluates as soon as `torch.compile` is
called, even where compiling is off. TMPDIR, which no node has, stands for /tmp.
"""

from __future__ import annotations

import getpass
import subprocess
import sys
from pathlib import Path

import pytest

from cloister.cli.interpreter import NODE_ENVIRONMENT

SCRIPT = """
import io, sys
import torch
from torch import nn

class Seen(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(3, 3)
    def forward(self, x):
        if not torch.compiler.is_exporting():
            eager.append(not torch.compiler.is_compiling())
        return torch.addcmul(self.dense(x), x, x)

eager = []
model = torch.compile(Seen())
optimizer = torch.optim.AdamW(model.parameters())
model(torch.ones(2, 3)).sum().backward()
optimizer.step()
program = torch.export.export(Seen(), (torch.ones(4, 3),))
torch.export.save(program, io.BytesIO())
print(eager)
"""
WITHOUT_DIRECTORY = {
    name: value
    for name, value in NODE_ENVIRONMENT.items()
    if name != "TORCHINDUCTOR_CACHE_DIR"
}


def run(directory: Path, environment: dict[str, str]) -> str:
    """Returns what the script says."""
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-I", "-B", "-c", SCRIPT],
        env={**environment, "TMPDIR": str(directory)},
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.stdout + done.stderr


def found_in(directory: Path) -> set[Path]:
    return set(directory.rglob("*"))


def planted_in(directory: Path) -> Path:
    """Plants a setting of the compiler's; returns what evaluating it makes."""
    marker = directory / "marker"
    bisect = directory / f"torchinductor_{getpass.getuser()}" / "bisect"
    (bisect / "inductor").mkdir(parents=True)
    status = "backend=inductor\nsubsystem=lowerings\n"
    (bisect / "bisect_status.txt").write_text(status)
    config = bisect / "inductor" / "lowerings_config.txt"
    config.write_text(f"any=open({str(marker)!r}, 'w')\n")
    return marker


def test_a_compiled_task_runs_as_it_is_and_nothing_of_the_hosts_is_looked_at(
    tmp_path: Path,
) -> None:
    planted_in(tmp_path)
    before = found_in(tmp_path)
    assert run(tmp_path, NODE_ENVIRONMENT) == "[True]\n"
    assert found_in(tmp_path) == before


@pytest.mark.long
def test_a_compiled_task_leaves_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, NODE_ENVIRONMENT) == "[True]\n"
    assert found_in(tmp_path) == set()


@pytest.mark.long
def test_with_the_compiler_off_alone_planted_code_runs(tmp_path: Path) -> None:
    """Or the test above proves nothing."""
    marker = planted_in(tmp_path)
    run(tmp_path, WITHOUT_DIRECTORY)
    assert marker.exists()


@pytest.mark.long
def test_a_file_in_the_compilers_way_ends_no_worker(tmp_path: Path) -> None:
    (tmp_path / f"torchinductor_{getpass.getuser()}").write_text("in the way")
    assert run(tmp_path, NODE_ENVIRONMENT) == "[True]\n"
    assert "FileExistsError" in run(tmp_path, WITHOUT_DIRECTORY)
