"""Change one byte of an installed package, and the party's own custodian refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.conftest import LIMIT_SECONDS, Deployment, StartCustodians

import cloister
from cloister.cli.interpreter import NODE_ENVIRONMENT, node_command

# A file that changes nothing of what a node does, in a package every node imports.
CHANGED = Path("click") / "py.typed"


@pytest.fixture
def other_installation(tmp_path: Path) -> Path:
    """This virtual environment once more, by hard links; returns its interpreter."""
    copy = tmp_path / "venv"
    shutil.copytree(sys.prefix, copy, copy_function=_link, symlinks=True)
    # The project's own source lies outside; both installations share it.
    assert Path(cloister.__file__).exists()
    return copy


@pytest.mark.long
def test_one_byte_of_an_installed_package_makes_a_node_unacceptable(
    deployment: Deployment,
    start_custodians: StartCustodians,
    other_installation: Path,
) -> None:
    (packages,) = other_installation.glob("lib/python3*/site-packages")
    changed = packages / CHANGED
    content = changed.read_bytes() if changed.exists() else b""
    changed.unlink(missing_ok=True)
    changed.write_bytes(content + b"\n")
    start_custodians(deployment, "bob")
    interpreter = str(other_installation / "bin" / "python")
    worker = subprocess.run(  # noqa: S603 - our own program
        [
            interpreter,
            *node_command(["worker", "--party", "bob"])[1:],
            "--plan",
            str(deployment.plan),
        ],
        env=NODE_ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_SECONDS,
    )
    assert worker.returncode == 3, worker.stderr
    assert "refused this node: the peer runs other code" in worker.stderr
    (refused,) = (
        it for it in deployment.custodian_log("bob") if it["event"] == "node-refused"
    )
    assert refused["code"] == "appraisal-measurement"
    with deployment.register("bob") as register:
        assert register.warrants() == (), "no epoch is spent on a refused node"


@pytest.mark.long
def test_the_same_files_installed_elsewhere_are_the_same_measurement(
    other_installation: Path,
) -> None:
    """What counts is the content of files, not where they lie."""
    script = (
        "import sys; from cloister.attestation.platforms.measurement import *;"
        "print(measure_installation(interpreter=running_interpreter(),"
        " search_path=tuple(sys.path)).installed.hex())"
    )
    digests = {
        subprocess.run(  # noqa: S603 - our own program
            [interpreter, *node_command([])[1:-2], "-c", script],
            env=NODE_ENVIRONMENT,
            capture_output=True,
            text=True,
            check=True,
            timeout=LIMIT_SECONDS,
        ).stdout
        for interpreter in (
            sys.executable,
            str(other_installation / "bin" / "python"),
        )
    }
    assert len(digests) == 1


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)
