"""Who goes first: first come, by priority, or fair among tenants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runtime.engine.config import SchedulingPolicy
from runtime.engine.request import Request

MAX_OVERTAKEN = 64
"""A waiting request that so many later ones have overtaken goes next, whatever its priority: nobody starves."""


class FirstCome:
    """In the order of arrival."""

    def key(self, request: Request) -> Any:
        """Smaller goes first."""
        return request.arrival

    def pick(self, waiting: Sequence[Request]) -> Request:
        """The next to be admitted; `waiting` is in the order of arrival, which serves this policy at once."""
        return waiting[0]

    def arrived(self, request: Request) -> None:
        """A request came."""

    def admitted(self, request: Request, waiting: Sequence[Request]) -> None:
        """A request left `waiting` for the batch."""

    def computes(self, request: Request, num_tokens: int) -> None:
        """A step computes tokens of it."""

    def left(self, request: Request) -> None:
        """A request is over."""


class ByPriority(FirstCome):
    """Smaller priorities first, then the order of arrival; see `MAX_OVERTAKEN`."""

    def key(self, request: Request) -> Any:
        """Smaller goes first."""
        return (request.num_overtaken < MAX_OVERTAKEN, request.priority, request.arrival)

    def pick(self, waiting: Sequence[Request]) -> Request:
        """The next to be admitted."""
        overdue = next((r for r in waiting if r.num_overtaken >= MAX_OVERTAKEN), None)
        return overdue or min(waiting, key=self.key)

    def admitted(self, request: Request, waiting: Sequence[Request]) -> None:
        """Everybody who came earlier and still waits has been overtaken."""
        for other in waiting:
            if other.arrival >= request.arrival:
                break
            other.num_overtaken += 1


class FairByTokens(FirstCome):
    """The tenant that has been given the fewest tokens first; among one tenant's requests, the order of arrival.

    The account of a tenant is opened, at the lowest balance of those present, with its first request and closed with
    its last: nobody saves up turns while away.
    """

    def __init__(self) -> None:
        self._given: dict[str, int] = {}
        self._present: dict[str, int] = {}

    def key(self, request: Request) -> Any:
        """Smaller goes first."""
        return (self._given.get(request.tenant, 0), request.arrival)

    def pick(self, waiting: Sequence[Request]) -> Request:
        """The next to be admitted."""
        return min(waiting, key=self.key)

    def arrived(self, request: Request) -> None:
        """Open the account."""
        if request.tenant not in self._present:
            self._given[request.tenant] = min(self._given.values(), default=0)
        self._present[request.tenant] = self._present.get(request.tenant, 0) + 1

    def computes(self, request: Request, num_tokens: int) -> None:
        """Charge the tenant."""
        self._given[request.tenant] += num_tokens

    def left(self, request: Request) -> None:
        """Close the account with the last request."""
        self._present[request.tenant] -= 1
        if not self._present[request.tenant]:
            del self._present[request.tenant], self._given[request.tenant]


def make_policy(name: SchedulingPolicy) -> FirstCome:
    """The policy of that name, with books of its own."""
    return {"fcfs": FirstCome, "priority": ByPriority, "fair": FairByTokens}[name]()
