"""What a refusal is known by."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cloister.errors import VerificationError


def code_of(act: Callable[[], object]) -> str:
    """Returns the code of the `VerificationError` that `act` must raise."""
    with pytest.raises(VerificationError) as caught:
        act()
    return caught.value.code
