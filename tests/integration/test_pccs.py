"""``cloister pccs serve`` in a process of its own, asked by the real client."""

from __future__ import annotations

import json
import os
import shutil
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.integration.conftest import Start, cloister

from cloister.attestation.pcs import CollateralService, PcsClient, PcsSettings
from cloister.attestation.platforms.simulated.root import load_simulated_root
from cloister.cli.exit_codes import ExitCode
from cloister.errors import PlatformError


@pytest.fixture
def deployed(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "deployment"))


def serve(start: Start, deployed: Path, *options: str) -> tuple[Any, dict[str, Any]]:
    running = start(
        "pccs", "serve", str(deployed), *options, environment=dict(os.environ)
    )
    return running, running.wait_for("serving")


def client_of(serving: dict[str, Any], deployed: Path, cache: Path) -> PcsClient:
    root = load_simulated_root(deployed / "insecure-simulated-root")
    return PcsClient(
        PcsSettings(
            service=CollateralService(address=serving["address"]),
            ca_file=Path(serving["certificate"]),
        ),
        root=root.trust_root,
        cache_directory=cache,
        clock=lambda: datetime.now(UTC),
    )


def test_a_deployments_collateral_is_served_until_ctrl_c(
    start: Start, deployed: Path, tmp_path: Path
) -> None:
    running, serving = serve(start, deployed, "--listen", "127.0.0.1:0", "--json")
    assert serving["simulated"] is True
    assert serving["fmspc"] == {"sgx": "FF53494D0001", "tdx": "FF53494D0001"}
    with client_of(serving, deployed, tmp_path / "cache") as client:
        for tee, name in (("sgx", "QE"), ("tdx", "TD_QE")):
            got = client.collateral_for(
                tee="sgx" if tee == "sgx" else "tdx",
                fmspc="FF53494D0001",
                ca="platform",
            )
            assert got.qe_identity.id == name
    running.interrupt()
    code, errors = running.finish()
    assert code == ExitCode.INTERRUPTED
    assert "Traceback" not in errors
    with (
        client_of(serving, deployed, tmp_path / "other") as client,
        pytest.raises(PlatformError),
    ):
        client.collateral_for(tee="sgx", fmspc="FF53494D0001", ca="platform")


def test_a_client_stays_connected_over_a_restart(
    start: Start, deployed: Path, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    running, serving = serve(start, deployed, "--listen", address, "--json")
    client = client_of(serving, deployed, tmp_path / "cache")
    client.collateral_for(tee="sgx", fmspc="FF53494D0001", ca="platform")
    running.interrupt()
    running.finish()
    serve(start, deployed, "--listen", address, "--json")
    client.collateral_for(tee="tdx", fmspc="FF53494D0001", ca="platform")
    client.close()


def test_what_is_served_is_called_simulated(start: Start, deployed: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        done = cloister("pccs", "serve", str(deployed), "--listen", address, "--json")
    # The port is in use: the error is one of ours, and on stdout for machines.
    assert done.returncode == ExitCode.PLATFORM
    assert json.loads(done.stdout)["error"]["code"] == "port-unusable"
    running = start(
        "pccs",
        "serve",
        str(deployed),
        "--listen",
        address,
        environment=dict(os.environ),
    )
    assert running.process.stderr is not None
    assert running.process.stderr.readline().startswith("SIMULATED collateral")
    assert address in running.process.stderr.readline()
    running.interrupt()
    assert running.finish()[0] == ExitCode.INTERRUPTED


def test_a_directory_that_is_no_deployment_is_refused(tmp_path: Path) -> None:
    done = cloister("pccs", "serve", str(tmp_path))
    assert done.returncode == ExitCode.USAGE
    assert "cloister init" in done.stderr
