from __future__ import annotations

import asyncio

import pytest
from tests.support.running import Run

from cloister.errors import ProtocolError
from cloister.federation.alongside import alongside


class Works:
    """Pieces of work that tell how they ended."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    async def endless(self, name: str = "endless") -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.append(name)

    async def failing(self, code: str) -> None:
        await asyncio.sleep(0)
        raise ProtocolError("something is wrong", code=code)

    async def returning(self) -> int:
        await asyncio.sleep(0)
        return 7


def failure(run: Run, works: Works, *, main: bool) -> str:
    leading = works.failing("main") if main else works.endless("main")
    beside = works.endless() if main else works.failing("beside")
    with pytest.raises(ProtocolError) as caught:
        run(alongside(leading, beside, works.endless()))
    return caught.value.code


def test_the_result_is_that_of_the_main_work_and_ends_the_others(run: Run) -> None:
    works = Works()
    assert run(alongside(works.returning(), works.endless(), works.endless())) == 7
    assert works.ended == ["endless", "endless"]


def test_a_failure_of_the_main_work_ends_the_others(run: Run) -> None:
    works = Works()
    assert failure(run, works, main=True) == "main"
    assert works.ended == ["endless", "endless"]


def test_a_failure_beside_it_ends_the_main_work_and_is_raised(run: Run) -> None:
    works = Works()
    assert failure(run, works, main=False) == "beside"
    assert works.ended == ["main", "endless"]


def test_a_failure_beside_it_counts_though_the_main_work_has_just_ended(
    run: Run,
) -> None:
    works = Works()
    with pytest.raises(ProtocolError) as caught:
        run(alongside(works.returning(), works.failing("beside")))
    assert caught.value.code == "beside"


def test_all_of_it_ends_when_it_is_cancelled(run: Run) -> None:
    works = Works()

    async def story() -> None:
        whole = asyncio.ensure_future(alongside(works.endless("main"), works.endless()))
        for _ in range(3):
            await asyncio.sleep(0)
        whole.cancel()
        with pytest.raises(asyncio.CancelledError):
            await whole

    run(story())
    assert works.ended == ["main", "endless"]
