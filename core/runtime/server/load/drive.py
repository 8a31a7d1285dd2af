"""Two ways to load a server: a fixed number of clients that wait for their answers, or arrivals at a rate."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from runtime.server.load.client import Client, Sample
from runtime.server.load.workload import Scale, Workload, asks

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """One measurement: `clients` waiting clients (closed loop), or `rate` arrivals per second (open loop)."""

    clients: int | None
    rate: float | None
    samples: tuple[Sample, ...]
    seconds: float


async def closed_loop(client: Client, workload: Workload, scale: Scale, *, clients: int, requests: int) -> Run:
    """`clients` clients send `requests` requests in all, each its next one when it has its answer."""
    origin = time.perf_counter()
    left = iter(range(requests))
    source = asks(workload, scale, clients)

    async def one() -> list[Sample]:
        return [await client.send(workload, next(source), origin) for _ in left]

    found = await asyncio.gather(*(one() for _ in range(clients)))
    return Run(clients, None, tuple(s for part in found for s in part), time.perf_counter() - origin)


async def open_loop(client: Client, workload: Workload, scale: Scale, *, rate: float, requests: int) -> Run:
    """`requests` requests arrive at random, `rate` per second on average, whether or not others are answered."""
    draw = random.Random(f"arrivals/{workload.seed}/{rate}")
    origin = time.perf_counter()
    at = 0.0
    tasks = []
    for ask in islice(asks(workload, scale, round(rate * 1000)), requests):
        at += draw.expovariate(rate)
        await asyncio.sleep(max(0.0, origin + at - time.perf_counter()))
        tasks.append(asyncio.create_task(client.send(workload, ask, origin)))
    return Run(None, rate, tuple(await asyncio.gather(*tasks)), time.perf_counter() - origin)
