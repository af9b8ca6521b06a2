"""One run for all who only look at what it left: at its model, at its audit log."""

from __future__ import annotations

import functools
from pathlib import Path

from tests.integration.conftest import Deployment, cloister, share_of, write_signed

from cloister.storage.model_vault import new_identity

# Who may ask rita for predictions.
ASKER, ASKERS_RECIPIENT = new_identity()


@functools.cache
def finished_with_rita(directory: Path) -> Deployment:
    """Returns a run that went to its end and sealed its model to rita among others.

    All agreed that she evaluates it on records of her own, the same as alice's, that
    her node predicts on whatever she seals, and that alice's node seals the graph.
    Nobody may change it; and where it ran nothing is any more, for it was moved.

    Args:
        directory: Where to make it: the test session's, so that there is one.
    """
    deployment = write_signed(directory / "ran", recipients=(("rita", "tdx"),))
    sealed = deployment.seal("rita", share_of("alice"))
    deployment.edit(
        deployment.plan,
        '\nrecipient = "',
        f'\ndata = "{sealed.digest}"\ndata_key = "{sealed.manifest.key}"'
        f'\npredictions_to = "{ASKERS_RECIPIENT}"\nrecipient = "',
    )
    deployment.edit(deployment.plan, "[model]\n", '[model]\ngraph = "alice"\n')
    with deployment.site("rita").open("a") as site:
        site.write(f'data = "{sealed.path.name}"\n')
    deployment.sign()
    done = cloister("run", str(deployment.plan))
    assert done.returncode == 0, done.stderr
    return Deployment(deployment.directory.rename(directory / "finished-with-rita"))
