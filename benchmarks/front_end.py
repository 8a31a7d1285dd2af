"""What the HTTP front end costs per token: streams over an engine that does nothing, in processor time.

Usage: python benchmarks/front_end.py [--streams 32] [--tokens 200] [--step-ms 20]

The engine is scripted (tests/support): one token for every stream in each step. The clients run in a process of their
own. The cost is the processor time that the server's process takes beyond what the same engine takes with nobody
reading it, divided by tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "core"), str(ROOT / "tests/support")]

CLIENTS = """
import json, socket, sys, threading
host, port, streams, tokens, path = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
body = {"stream": True, "max_tokens": tokens}
body |= {"messages": [{"role": "user", "content": "hi"}]} if "chat" in path else {"prompt": "hi"}
data = json.dumps(body).encode()
head = f"POST {path} HTTP/1.1\\r\\nHost: x\\r\\nContent-Type: application/json\\r\\n"
head += f"Content-Length: {len(data)}\\r\\n\\r\\n"
events = []
def stream():
    with socket.create_connection((host, port)) as connection:
        connection.sendall(head.encode() + data)
        seen = b""
        while not seen.endswith(b"0\\r\\n\\r\\n"):
            seen += connection.recv(65536)
        events.append(seen.count(b"data: "))
threads = [threading.Thread(target=stream) for _ in range(streams)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sum(events))
"""


async def measure(streams: int, tokens: int, step_s: float, path: str) -> dict[str, float | int | str]:
    """One run: serve the streams of the clients, and count processor time and events."""
    from fake_async_llm import FakeAsyncLLM

    from runtime.server.serve import DrainingServer, listen
    from runtime.server.service import Service
    from runtime.server.settings import ServerSettings

    llm = FakeAsyncLLM("x" * tokens, delay_s=step_s, max_model_len=tokens + 100)
    settings = ServerSettings(port=0)
    listener = listen(settings)
    server = DrainingServer(Service(llm, settings), lambda line: None)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    host, port = listener.getsockname()[:2]
    started, cpu = time.perf_counter(), time.process_time()
    clients = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CLIENTS, host, str(port), str(streams), str(tokens), path, stdout=subprocess.PIPE
    )
    out, _ = await clients.communicate()
    seconds, busy = time.perf_counter() - started, time.process_time() - cpu
    server.should_exit = True
    await serving
    idle = await idle_cost(streams, tokens, step_s)
    num_tokens = streams * tokens
    return {
        "path": path,
        "streams": streams,
        "tokens": num_tokens,
        "events": int(out),
        "wall_s": round(seconds, 2),
        "server_cpu_us_per_token": round(1e6 * busy / num_tokens, 1),
        "engine_cpu_us_per_token": round(1e6 * idle / num_tokens, 1),
        "front_end_us_per_token": round(1e6 * (busy - idle) / num_tokens, 1),
    }


async def idle_cost(streams: int, tokens: int, step_s: float) -> float:
    """Processor time of the scripted engine alone."""
    from fake_async_llm import FakeAsyncLLM

    llm = FakeAsyncLLM("x" * tokens, delay_s=step_s, max_model_len=tokens + 100)

    async def read() -> None:
        async for _ in llm.generate([1, 2, 3]):
            pass

    started = time.process_time()
    await asyncio.gather(*(read() for _ in range(streams)))
    return time.process_time() - started


def main() -> None:
    """Measure and print one JSON object per route."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--step-ms", type=float, default=20.0)
    args = parser.parse_args()
    for path in ("/v1/chat/completions", "/v1/completions"):
        result = asyncio.run(measure(args.streams, args.tokens, args.step_ms / 1000, path))
        sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
