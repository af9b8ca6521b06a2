"""What a refusal is known by."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec

import pytest

from cloister.errors import VerificationError

Given = ParamSpec("Given")


def code_of(
    act: Callable[Given, object], *args: Given.args, **kwargs: Given.kwargs
) -> str:
    """Returns the code of the `VerificationError` that `act` must raise."""
    with pytest.raises(VerificationError) as caught:
        act(*args, **kwargs)
    return caught.value.code
