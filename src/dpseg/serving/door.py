"""How many requests are inside at a time; whom there is no room for is told when to come again."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from dpseg.serving.problems import RequestError

_WEIGHT = 0.1  # of the newest request in the running mean of seconds


class Door:
    """Counts the requests that are inside, all and by client. It belongs to the event loop's thread.

    Attributes:
        seconds: that the model takes for a photo, a running mean.
    """

    def __init__(self, room: int, per_client: int) -> None:
        """Opens.

        Args:
            room: requests at a time, 1 or more.
            per_client: of these, so many of one client.
        """
        self.room, self.per_client = room, per_client
        self.seconds = 0.5
        self._inside: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """How many are inside."""
        return self._inside.total()

    def worked(self, seconds: float) -> None:
        """Takes note of how long the model took for a photo."""
        self.seconds += _WEIGHT * (seconds - self.seconds)

    @contextmanager
    def enter(self, client: str) -> Iterator[None]:
        """Lets a request in until the block ends.

        Args:
            client: its address.

        Raises:
            RequestError: there is no room.
        """
        later = {"Retry-After": str(max(1, math.ceil(self.count * self.seconds)))}
        if self._inside[client] >= self.per_client:
            raise RequestError(
                429, f"{self.per_client} requests of yours are in work, the limit; wait for one of them", later
            )
        if self.count >= self.room:
            raise RequestError(503, f"{self.room} requests are in work, the limit; try again later", later)
        self._inside[client] += 1
        try:
            yield
        finally:
            self._inside[client] -= 1
            if not self._inside[client]:
                del self._inside[client]
