from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from cryptography import x509
from tests.support.federation_in_memory import START, Federation
from tests.support.open_server import open_server
from tests.support.running import Run

from cloister.federation.ports import CERTIFICATE_LIFE
from cloister.ratls.insecure_fetch import fetch_unverified_certificate


def test_a_servers_certificate_outlives_a_run_of_months(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    assert timedelta(days=365) == CERTIFICATE_LIFE

    async def story() -> None:
        async with open_server(federation.node("aggregator"), tmp_path) as port:
            der = await fetch_unverified_certificate(port.enrolment)
        shown = x509.load_der_x509_certificate(der)
        assert shown.not_valid_after_utc == START + CERTIFICATE_LIFE

    run(story())
