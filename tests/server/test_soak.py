"""Two hundred clients at once, many of which leave in the middle: nothing leaks, nobody gets a 5xx."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from server_process import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CLIENTS = 200
SECONDS = 20.0
WARM_UP_S = 8.0


def gauge(url: str, name: str) -> float:
    page = httpx.get(f"{url}/metrics").text
    return float(re.search(rf"^{name}(?:\{{.*\}})? (\S+)$", page, re.M)[1])


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


async def one_request(host: str, port: int, draw: random.Random) -> str:
    """Ask, read some of the answer or all of it, and leave; returns the status, or "left"."""
    body = {
        "messages": [{"role": "user", "content": f"Tell me about {draw.randrange(50)}."}],
        "stream": draw.random() < 0.8,
        "max_tokens": draw.randrange(1, 40),
        "ignore_eos": True,
    }
    data = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()
        if draw.random() < 0.4:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(reader.read(200), draw.random())
            return "left"
        answer = await reader.read(-1)
        return answer.split(b" ", 2)[1].decode()
    finally:
        writer.close()


async def load(host: str, port: int, seconds: float, results: Counter[str]) -> None:
    deadline = time.monotonic() + seconds

    async def client(seed: int) -> None:
        draw = random.Random(seed)
        while time.monotonic() < deadline:
            results[await one_request(host, port, draw)] += 1

    await asyncio.gather(*(client(seed) for seed in range(CLIENTS)))


def test_two_hundred_streams_with_disconnects_leak_nothing() -> None:
    with ServerProcess("--max-num-seqs", "32") as server:
        match = re.match(r"http://(.*):(\d+)", server.url)
        host, port = match[1], int(match[2])
        children = [server.process.pid, *server.children()]
        results: Counter[str] = Counter()
        asyncio.run(load(host, port, WARM_UP_S, results))
        before = [(descriptors(pid), resident_bytes(pid)) for pid in children]
        asyncio.run(load(host, port, SECONDS, results))
        deadline = time.monotonic() + 30
        while gauge(server.url, "runtime_num_requests_running") or gauge(server.url, "runtime_num_requests_waiting"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        after = [(descriptors(pid), resident_bytes(pid)) for pid in children]
        assert gauge(server.url, "runtime_kv_blocks_free") == gauge(server.url, "runtime_kv_blocks")
        assert gauge(server.url, "runtime_http_requests_in_flight") == 1
        assert gauge(server.url, "runtime_engine_restarts_total") == 0
        assert set(results) == {"200", "left"}
        for (fds_before, bytes_before), (fds_after, bytes_after) in zip(before, after):
            assert fds_after <= fds_before + 4
            assert bytes_after <= 1.05 * bytes_before
