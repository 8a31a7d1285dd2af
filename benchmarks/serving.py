"""Measures `runtime serve` under load, beside other servers where their commands are given: one file, taking turns.

    python benchmarks/serving.py --model model.gguf --threads 2 --json FILE --peer 'llama-server=llama-server
        -m {model} --port {port} -t {threads} -tb {threads} -np {clients} -c {context} --no-webui'

    load    32 clients that wait for their answers, 256 tokens in and 64 out; servers take turns
    rising  the same with 1, 4 and 16 clients
    prefix  16 requests one after the other, whose prompts share their first 1024 tokens
    long    a prompt of 4096 tokens arrives while 4 and 16 streams run: gaps between their tokens before and meanwhile

Each server is started for its turn and warmed up by a few requests. Clients and servers share the machine, as the
processors that clients take are part of what serving costs. A peer's command may name {model}, {port}, {threads},
{clients} and {context}: tokens for all clients together.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx

from runtime.cli.bench import machine_facts
from runtime.cli.output import table
from runtime.server.load.client import Client, Sample
from runtime.server.load.drive import closed_loop
from runtime.server.load.summary import describe, percentile, summarize
from runtime.server.load.workload import Scale, Workload, asks

SCHEMA = "runtime-serving/1"
PORT = 8217
START_S = 120.0
CLIENTS = 32
"""Sequences that either server may run at once, and clients of the measurement `load`."""
WARM_UP_REQUESTS = 8
LONG_PROMPT, WARM_UP_S, BEFORE_S = 4096, 12.0, 8.0

Record = dict[str, Any]


@contextmanager
def serving(command: Sequence[str]) -> Iterator[str]:
    """A server from its start until it answers, to its end; gives the address of its interface."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + START_S
            while not _is_ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"{command[0]} does not serve:\n{log.read().decode(errors='replace')[-2000:]}")
                time.sleep(0.1)
            yield f"http://127.0.0.1:{PORT}/v1"
        finally:
            process.terminate()
            process.wait()


def _is_ready() -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{PORT}/v1/models", timeout=1.0).status_code == 200
    except httpx.HTTPError:
        return False


def runtime_command(options: argparse.Namespace, context: int, blocks: int | None = None) -> list[str]:
    """How this runtime is started."""
    pool = [] if blocks is None else ["--num-kv-blocks", str(blocks)]
    return [
        *(sys.executable, "-m", "runtime", "serve", "-m", str(options.model), "--port", str(PORT)),
        *("--threads", str(options.threads), "--max-num-seqs", str(CLIENTS), "--ctx", str(context), *pool),
    ]


def peer_command(options: argparse.Namespace, template: str, context: int) -> list[str]:
    """How a peer is started."""
    values = {"model": options.model, "port": PORT, "threads": options.threads, "clients": CLIENTS}
    return [part.format(**values, context=CLIENTS * context) for part in shlex.split(template)]


async def clients_wait(url: str, clients: int, requests: int) -> Record:
    """A closed loop over prompts that share nothing."""
    workload = Workload()
    async with Client(url) as client:
        scale = await client.calibrate(workload)
        warm_up = replace(workload, seed=1)
        await closed_loop(client, warm_up, scale, clients=min(4, clients), requests=WARM_UP_REQUESTS)
        return summarize(await closed_loop(client, workload, scale, clients=clients, requests=requests))


async def shared_prefix(url: str) -> Record:
    """One request after the other; the first computes what all share."""
    workload = Workload((1044, 1044), (4, 4), shared_prefix_tokens=1024)
    async with Client(url) as client:
        scale = await client.calibrate(workload)
        run = await closed_loop(client, workload, scale, clients=1, requests=16)
    first, *others = [s.ttft for s in run.samples]
    return {"first_ttft_s": first, "others_ttft_s": describe(others), "ratio": first / max(others)}


async def long_prompt(url: str, streams: int) -> Record:
    """Gaps between tokens of `streams` streams before a long prompt arrives and until its first token."""
    async with Client(url, timeout_s=1200.0) as client:
        scale = await client.calibrate(Workload())
        origin = time.perf_counter()
        short = Workload((16, 16), (100_000, 100_000))
        source = asks(short, scale, streams)
        samples = [Sample(0.0) for _ in range(streams)]
        tasks = [asyncio.create_task(client.send(short, next(source), origin, sample)) for sample in samples]
        await asyncio.sleep(WARM_UP_S + BEFORE_S)
        arrives = time.perf_counter() - origin
        long = Workload((LONG_PROMPT, LONG_PROMPT), (1, 1))
        asked = await client.send(long, next(asks(long, Scale(scale.fixed, scale.per_word), 1)), origin)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    before = _gaps(samples, WARM_UP_S, arrives)
    meanwhile = _gaps(samples, arrives, asked.end)
    return {
        "streams": streams,
        "prompt_tokens": asked.prompt_tokens,
        "ttft_s": asked.ttft,
        "gap_before_s": describe(before),
        "gap_meanwhile_s": describe(meanwhile),
        "ratio": {f"p{p}": percentile(sorted(meanwhile), p) / percentile(sorted(before), p) for p in (50, 90, 99)},
    }


def _gaps(samples: Sequence[Sample], start: float, stop: float) -> list[float]:
    pairs = [(a, b) for s in samples for a, b in zip(s.pieces, s.pieces[1:])]
    return [b - a for a, b in pairs if start < b <= stop]


def measure(options: argparse.Namespace) -> list[Record]:
    """The wanted measurements, in order."""
    records: list[Record] = []

    def add(kind: str, engine: str, record: Record) -> None:
        records.append({"kind": kind, "engine": engine, **record})
        print(f"{kind}, {engine}: {_short(records[-1])}", file=sys.stderr, flush=True)

    peers = dict(peer.split("=", 1) for peer in options.peer)
    engines = ["runtime", *peers]
    wanted = options.only.split(",")
    loads = [("load", CLIENTS, turn) for turn in range(options.turns)] if "load" in wanted else []
    if "rising" in wanted:
        loads += [("rising", clients, 0) for clients in (1, 4, 16)]
    for kind, clients, turn in loads:
        for engine in engines if turn % 2 == 0 else reversed(engines):
            ours = engine == "runtime"
            command = runtime_command(options, 512) if ours else peer_command(options, peers[engine], 512)
            with serving(command) as url:
                add(kind, engine, asyncio.run(clients_wait(url, clients, max(8, 2 * clients))))
    if "prefix" in wanted:
        with serving(runtime_command(options, 2048)) as url:
            add("prefix", "runtime", asyncio.run(shared_prefix(url)))
    for streams in (4, 16) if "long" in wanted else ():
        with serving(runtime_command(options, 8192, blocks=512)) as url:
            add("long", "runtime", asyncio.run(long_prompt(url, streams)))
    return records


def _short(record: Record) -> str:
    if "clients" in record:
        return f"{record['clients']} clients, {record['output_tokens_per_s']:.1f} tokens/s, {record['failed']} failed"
    if "streams" in record:
        ratio = ", ".join(f"{name} {value:.2f}" for name, value in record["ratio"].items())
        return f"{record['streams']} streams, gaps times {ratio}, first token after {record['ttft_s']:.1f} s"
    median = record["others_ttft_s"]["p50"]
    return (
        f"first token after {record['first_ttft_s']:.2f} s, then {median:.3f} s, at least {record['ratio']:.0f} times"
    )


def speeds(records: Sequence[Record]) -> str:
    """Output tokens per second by server and number of clients: medians, and what they are of the peers'."""
    engines = list(dict.fromkeys(r["engine"] for r in records if "clients" in r))
    rows = [("clients", *engines, *(f"of {peer}'s" for peer in engines[1:]))]
    for clients in sorted({r["clients"] for r in records if "clients" in r}):
        medians = []
        for engine in engines:
            found = [r for r in records if r.get("clients") == clients and r["engine"] == engine]
            medians.append(statistics.median(r["output_tokens_per_s"] for r in found))
        shares = [f"{medians[0] / median:.2f}" for median in medians[1:]]
        rows.append((str(clients), *(f"{median:.1f}" for median in medians), *shares))
    return table(rows)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND", help="may be repeated")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3, help="of the measurement load (%(default)s)")
    parser.add_argument("--only", default="load,rising,prefix,long", help="(%(default)s)")
    parser.add_argument("--json", dest="json_file", type=Path)
    options = parser.parse_args()
    records = measure(options)
    if options.json_file:
        document = {
            "schema": SCHEMA,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": machine_facts(),
            "model": options.model.name,
            "threads": options.threads,
            "records": records,
        }
        options.json_file.write_text(json.dumps(document), encoding="utf-8")
    if any("clients" in r for r in records):
        print(speeds(records))
    return 1 if any(r.get("failed") for r in records) else 0


if __name__ == "__main__":
    sys.exit(main())
