"""`runtime plan`: placement with reasons, memory and context, by manifests alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("plugins")


def limited_manifest(**ranges: tuple[int, int]) -> dict[str, Any]:
    """A chip with a few kernels; `topk=(0, 128)` limits the width of its rows."""
    rules = []
    for op in ("linear", "rms_norm", "embed", "softmax", "topk"):
        when = []
        if op in ranges:
            low, high = ranges[op]
            when = [{"kind": "Range", "fact": "N", "lo": low, "hi": high, "step": 1}]
        rules.append({"op": f"{op}@1", "when": when})
    return {"backend": "mychip", "rules": rules}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "mychip.json"
    path.write_text(json.dumps(limited_manifest(topk=(0, 128))))
    return path


def test_a_backend_whose_device_is_absent_is_planned_for_by_its_manifest(command: Callable, tiny: Path) -> None:
    result = command("plan", tiny, "--backend", "absent")
    assert result.code == 0
    assert "absent · by its manifest alone, no device was looked for" in result.out
    facts = dict(line.split("  ", 1) for line in result.out.partition("\n\n")[0].splitlines())
    facts = {label: text.strip() for label, text in facts.items()}
    assert facts["step"] == "all 9 operations native (100.0 % of the work)"
    assert facts["context"] == "128 tokens (the model's limit) · 1 user"
    assert facts["KV cache"] == "256 B per token as f32 · 32.77 KB for 8 blocks of 16 tokens"
    assert max(map(len, result.out.splitlines())) <= 120


def test_a_topk_narrower_than_the_vocabulary_goes_to_the_host_with_the_reason(
    command: Callable, tiny: Path, manifest: Path
) -> None:
    result = command("plan", tiny, "--manifest", manifest)
    assert result.code == 0
    (row,) = [line for line in result.out.splitlines() if line.startswith("topk@1")]
    assert row.split(maxsplit=4)[1:4] == ["(sampling)", "1", "host"]
    assert row.endswith("supported for N <= 128, the plan needs 262")


def test_every_operation_that_the_chip_lacks_has_its_reason(command: Callable, tiny: Path, manifest: Path) -> None:
    result = command("plan", tiny, "--manifest", manifest)
    rows = {line.split()[0]: line for line in result.out.splitlines() if "@1" in line}
    assert rows["linear@1"].split()[1:] == ["15", "mychip", "native"]
    assert rows["rope@1"].split(maxsplit=3)[1:] == ["4", "host", "no rule in manifest"]
    assert "on host" in result.out
    assert "on mychip" in result.out


def test_verbose_shows_every_node(command: Callable, tiny: Path, manifest: Path) -> None:
    out = command("plan", tiny, "--manifest", manifest, "-v").out
    assert any(line.split()[:2] == ["lm_head", "linear@1"] for line in out.splitlines())


def test_the_plan_as_json_holds_placements_memory_and_context(command: Callable, tiny: Path, manifest: Path) -> None:
    (plan,) = command("plan", tiny, "--manifest", manifest, "--json", "--users", "4", "--ctx", "32").events
    assert plan["event"] == "plan"
    assert (plan["max_model_len"], plan["num_blocks"], plan["block_size"]) == (32, 8, 16)
    assert plan["kv_bytes"] == 8 * 16 * plan["kv_bytes_per_token"]
    assert plan["weights_bytes_stored"] == 141440
    topk = next(p for p in plan["sampling"]["placements"] if p["op"] == "topk@1")
    assert topk["how"] == "host"
    assert "the plan needs 262" in topk["reasons"][0]
    assert plan["memory"]["host"]["kv_bytes"] == plan["kv_bytes"]


def test_forbidding_the_fallback_names_what_the_chip_lacks(command: Callable, tiny: Path, manifest: Path) -> None:
    result = command("plan", tiny, "--manifest", manifest, "--fallback", "forbid")
    assert result.code == 2
    assert "cannot be placed on mychip with --fallback forbid" in result.err
    assert "allow the host with --fallback host" in result.err


def test_placement_rules_move_nodes(command: Callable, tiny: Path) -> None:
    (plan,) = command("plan", tiny, "--backend", "tiny", "--place", "layers.0.*=host", "--json").events
    where = {p["node"]: p["device"] for p in plan["step"]["placements"]}
    assert {device for node, device in where.items() if node.startswith("layers.0.")} == {"host"}
    assert {device for node, device in where.items() if not node.startswith("layers.0.")} == {"tiny"}


def test_the_context_is_fitted_to_the_memory_of_the_chip(
    command: Callable, tmp_path: Path, write_model: Callable
) -> None:
    write_model(tmp_path / "long.gguf", context=1_000_000)
    (plan,) = command("plan", tmp_path / "long.gguf", "--backend", "absent", "--memory", "0.01", "--json").events
    assert plan["context_limited_by"] == "memory; the model's limit is 1000000"
    assert plan["max_model_len"] == int((10_000_000 - 141_440) * 0.8) // 256 // 16 * 16


def test_auto_plans_for_the_best_device_that_is_here(command: Callable, tiny: Path) -> None:
    (plan,) = command("plan", tiny, "--json").events
    assert plan["backend"] == "tiny"
    assert plan["memory_bytes_available"] == 8_000_000_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a list, a manifest is an object"),
        ('{"bakend": "x"}', "this is no manifest"),
        ('{"backend": "x", "rules": [{"op": "linear@1", "when": [{"kind": "Rang"}]}]}', "this is no manifest"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(
    command: Callable, tiny: Path, tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "m.json"
    path.write_text(text)
    result = command("plan", tiny, "--manifest", path)
    assert result.code == 2
    assert message in result.err


def test_a_model_that_does_not_fit_fails_after_its_plan_is_shown(
    command: Callable, tmp_path: Path, write_model: Callable
) -> None:
    """The KV cache fits beside the weights, the intermediates of a step beside both do not."""
    write_model(tmp_path / "long.gguf", context=64)
    arguments = ("plan", tmp_path / "long.gguf", "--backend", "absent")
    (plan,) = command(*arguments, "--json").events
    needed = plan["memory"]["absent"]["total_bytes"]
    assert command(*arguments, "--memory", str(needed / 1e9)).code == 0
    result = command(*arguments, "--memory", str((needed - 1000) / 1e9))
    assert result.code == 2
    assert "DOES NOT FIT" in result.out
    assert re.search(
        r"error: long\.gguf with a context of 64 tokens takes .* absent has .*: it does not fit", result.err
    )
    plan, error = command(*arguments, "--memory", str((needed - 1000) / 1e9), "--json").events
    assert (plan["event"], plan["fits"]) == ("plan", False)
    assert (error["event"], error["code"]) == ("error", "out_of_memory")


def test_weights_that_are_larger_than_the_memory_are_named(command: Callable, tiny: Path) -> None:
    result = command("plan", tiny, "--backend", "absent", "--memory", "0.0001")
    assert result.code == 2
    assert "the weights of tiny.gguf take 141 KB, absent has 100 KB: it does not fit" in result.err
