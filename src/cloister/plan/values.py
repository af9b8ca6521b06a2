"""The kinds of single values that the plan's sections are made of."""

from __future__ import annotations

from sys import float_info
from typing import Annotated

from msgspec import Meta

# Patterns end with \Z: a $ would let a line break through at the end.
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")]
RunId = Annotated[
    str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}/[a-z0-9][a-z0-9-]{0,31}\Z")
]
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\.py\Z")]
ClassName = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}\Z")]
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Rate = Annotated[float, Meta(gt=0, le=1e6)]
Fraction = Annotated[float, Meta(ge=0, lt=1)]
# Bounds keep NaN and the infinities out, and Python from writing endless integers.
OptionInt = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
OptionFloat = Annotated[float, Meta(ge=-float_info.max, le=float_info.max)]
Option = bool | OptionInt | OptionFloat | str
