"""A data set of which only the held-out records are used."""

from __future__ import annotations

from typing_extensions import override

from cloister.errors import StorageError
from cloister.storage.records import DataSource, Records, SplitName


class HeldOut(DataSource):
    """Records of which only the held-out ones are used: nobody trains here.

    A task makes its learner for both splits, and a set that was sealed to be evaluated
    or predicted on may have no training records. Its held-out records stand in for
    them then.

    Args:
        source: The records.
    """

    __slots__ = ("_source",)

    def __init__(self, source: DataSource) -> None:
        self._source = source

    @override
    def split(self, name: SplitName) -> Records:
        """Returns the records of one split.

        Raises:
            StorageError: If there are no held-out records (``data-empty``).
        """
        try:
            return self._source.split(name)
        except StorageError as error:
            if error.code != "data-empty" or name == "held-out":
                raise
        return self._source.split("held-out")
