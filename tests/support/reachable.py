"""What the garbage collector reaches, without walking through all tests every time.

Thousands of tests are collected before the first one runs, and hardly anything of that
is ever given up. So it is set aside once: no collection looks at it again. What of it
may come to hold something later is still looked through where memory is searched.
"""

from __future__ import annotations

import gc
import types
import weakref
from typing import Any

# They hold for ever what they were made with, or nothing.
_UNCHANGING = {
    tuple,
    frozenset,
    range,
    property,
    staticmethod,
    classmethod,
    weakref.ReferenceType,
    types.BuiltinFunctionType,
    types.ClassMethodDescriptorType,
    types.GenericAlias,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.MethodDescriptorType,
    types.MethodType,
    types.UnionType,
    types.WrapperDescriptorType,
}
_EARLIER: list[Any] = []


def set_aside() -> None:
    """Has the garbage collector look no more at anything that there is by now."""
    gc.collect()
    _EARLIER[:] = [it for it in gc.get_objects() if type(it) not in _UNCHANGING]
    gc.freeze()


def older_objects() -> list[Any]:
    """Returns what was there before any story, but for what cannot change."""
    return _EARLIER


def newer_objects() -> list[Any]:
    """Returns all that was made since."""
    return gc.get_objects()
