"""Collectives over gloo, two processes, against what each rank must get."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.oracle, pytest.mark.timeout(120)]

PROGRAM = r"""
import json, os, sys
sys.path.insert(0, sys.argv[3])
import numpy as np
import runtime_torch_cpu as plugin
from runtime.backend import CollectiveFailed, DeviceConfig, InvalidArgument, TensorSpec
from runtime.dtypes import FORMATS

rank, address = int(sys.argv[1]), sys.argv[2]
device = plugin.plugin.runtime_open(plugin.INFO, DeviceConfig())
group = device.communicator([address, "peer"], rank)

def put(values):
    array = np.asarray(values, np.float32)
    spec = TensorSpec(FORMATS["f32"], array.shape)
    buffer = device.allocate(spec)
    device.upload(buffer, memoryview(array).cast("B"), spec).wait()
    return buffer, spec

def get(buffer, *shape):
    array = np.empty(shape, np.float32)
    device.download(buffer, memoryview(array).cast("B"), TensorSpec(FORMATS["f32"], shape)).wait()
    return array.tolist()

mine = [[1.0 + 10 * rank, 2.0], [3.0, 4.0 * (rank + 1)]]
result = {"rank": group.rank, "world_size": group.world_size}
buffer, spec = put(mine)
group.all_reduce(buffer, spec).wait()
result["all_reduce"] = get(buffer, 2, 2)
source, spec = put(mine)
target, _ = put(np.zeros((4, 2)))
group.all_gather(target, source, spec).wait(30.0)
result["all_gather"] = get(target, 4, 2)
target, _ = put(np.zeros((1, 2)))
group.reduce_scatter(target, source, spec).wait()
result["reduce_scatter"] = get(target, 1, 2)
target, _ = put(np.zeros((2, 2)))
group.all_to_all(target, source, spec).wait()
result["all_to_all"] = get(target, 2, 2)
buffer, spec = put(mine)
group.broadcast(buffer, spec, 1).wait()
result["broadcast"] = get(buffer, 2, 2)
buffer, spec = put(mine)
(group.send if rank == 0 else group.recv)(buffer, spec, 1 - rank).wait()
result["sent"] = get(buffer, 2, 2)
try:
    group.send(buffer, spec, 2)
except InvalidArgument as error:
    result["refused"] = str(error)
group.abort()
try:
    group.all_reduce(buffer, spec)
except CollectiveFailed as error:
    result["aborted"] = str(error)
print(json.dumps(result), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def results() -> list[dict]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    plugin = str(Path(__file__).resolve().parent / "plugin")
    commands = [[sys.executable, "-c", PROGRAM, str(rank), address, plugin] for rank in (0, 1)]
    running = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c in commands]
    answers = [process.communicate(timeout=100) for process in running]
    assert [p.returncode for p in running] == [0, 0], answers[0][1] + answers[1][1]
    return [json.loads(out) for out, _ in answers]


def test_every_rank_gets_its_part(results: list[dict]):
    for rank, got in enumerate(results):
        assert (got["rank"], got["world_size"]) == (rank, 2)
        assert got["all_reduce"] == [[12.0, 4.0], [6.0, 12.0]]
        assert got["all_gather"] == [[1.0, 2.0], [3.0, 4.0], [11.0, 2.0], [3.0, 8.0]]
        assert got["reduce_scatter"] == [[[12.0, 4.0]], [[6.0, 12.0]]][rank]
        assert got["all_to_all"] == [[[1.0, 2.0], [11.0, 2.0]], [[3.0, 4.0], [3.0, 8.0]]][rank]
        assert got["broadcast"] == [[11.0, 2.0], [3.0, 8.0]]
        assert got["sent"] == [[1.0, 2.0], [3.0, 4.0]]


def test_peers_that_do_not_exist_and_aborted_groups_are_errors(results: list[dict]):
    for rank, got in enumerate(results):
        assert got["refused"] == "rank 2 does not exist: the group has 2"
        assert got["aborted"] == f"all_reduce on rank {rank}: the group was left"
