"""One call that tests the contents of all indices before anything follows them into memory."""

from __future__ import annotations

import torch

from runtime.backend import Value
from runtime_torch.calls import Call, Checks, Shared, Site, cdiv, clamp, launch
from runtime_torch.kernels import checks as kernels
from runtime_torch.settings import next_power

NO_LIMIT = 2**31 - 1
BLOCK = 256
TABLE_ELEMENTS = 4096
"""Of block tables, that a program looks at in one step."""
MAX_PROGRAMS = 64
"""That share one rule."""


CACHE_OPS = ("rope@1", "kv_write@1", "qkv_rope_write@1", "kv_copy_blocks@1", "kv_export@1", "kv_import@1")


class Checker:
    """Collects the rules of a region, each over a value from outside once; its own indices are right."""

    def __init__(self, from_outside: frozenset[Value], shared: Shared) -> None:
        self.checks = Checks()
        self._from_outside = from_outside
        self._shared = shared
        self._seen: set[object] = set()
        self._rules: list[tuple[int, ...]] = []
        self._tensors: list[torch.Tensor] = []
        self._count = self._num_seqs = self._width = 0

    def calls(self) -> list[Call]:
        """The launch that tests all rules so far."""
        if not self._rules:
            return []
        device, is_async = self._shared.device, self._shared.device.type not in ("cpu", "meta")
        padded = [[*rule, *([0] * (kernels.WORDS - len(rule)))] for rule in self._rules]
        rules = torch.tensor(padded, dtype=torch.int64, pin_memory=is_async).to(device, non_blocking=True)
        block, seqs = min(BLOCK, next_power(self._count)), next_power(self._num_seqs)
        columns = min(next_power(self._width), max(1, TABLE_ELEMENTS // seqs))
        programs = max(cdiv(self._count, block), clamp(cdiv(self._width, columns), 1, MAX_PROGRAMS))
        grid = (programs, len(self._rules))
        call = launch(kernels.check, grid, rules, self._shared.fault, BLOCK=block, SEQS=seqs, BP=columns)
        tensors = self._tensors  # rules hold their addresses: they live as long as the call
        return [lambda: (call(), tensors)]

    def add(self, site: Site) -> None:
        """Rules that `site` needs and that no site before it did."""
        key = site.node.op.key
        if key == "embed@1":
            self._range(site, "token_ids", site.shape("weight")[0], "rows in the table")
        elif key == "gather_rows@1":
            self._range(site, "rows", site.shape("x")[0], "rows in x")
        elif key == "moe_linear@1":
            self._range(site, "expert_ids", site.shape("weight")[0], "experts")
        elif key == "penalize@1":
            for port in ("token_ids", "bias_ids"):
                if site.has(port):
                    self._range(site, port, site.shape("logits")[1], "tokens in the vocabulary", -1)
        elif key == "attention@1":
            self._sequences(site)
        elif key in CACHE_OPS:
            self._cache(site, key)

    def _cache(self, site: Site, key: str) -> None:
        """Positions, and places in a cache."""
        if key in ("rope@1", "qkv_rope_write@1"):
            self._range(site, "positions", NO_LIMIT, "positions; a position is 0 or more")
        if key in ("kv_write@1", "qkv_rope_write@1"):
            num_slots = site.shape("kv")[1] * site.shape("kv")[2]
            self._range(site, "slot_mapping", num_slots, "slots in kv, and -1 for nothing", -1)
            self._apart(site, "slot_mapping", None, "every target is written once")
        for port in ("block_ids", "source_blocks", "target_blocks"):
            if site.has(port):
                self._range(site, port, site.shape("kv")[1], "blocks in kv")
        if key == "kv_import@1":
            self._apart(site, "block_ids", None, "every target is written once")
        if key == "kv_copy_blocks@1":
            self._apart(site, "target_blocks", None, "every target is written once")
            self._apart(site, "target_blocks", "source_blocks", "the result would depend on the order")

    def _is_new(self, site: Site, rule: str, ports: tuple[str, ...], facts: tuple[object, ...]) -> bool:
        values = [site.node.inputs[port] for port in ports]
        key = (rule, *values, *facts)
        if key in self._seen or not any(v in self._from_outside for v in values):
            return False
        self._seen.add(key)
        return True

    def _number(self, site: Site, *messages: str) -> int:
        return self.checks.add(*(f"node {site.node.name}: {m}" for m in messages))

    def _rule(self, kind: int, number: int, *words: int | torch.Tensor) -> None:
        tensors = [word for word in words if isinstance(word, torch.Tensor)]
        self._tensors += tensors
        numbers = (word.data_ptr() if isinstance(word, torch.Tensor) else int(word) for word in words)
        self._rules.append((kind, number, *numbers))

    def _range(self, site: Site, port: str, past: int, what: str, lowest: int = 0) -> None:
        if not self._is_new(site, "range", (port,), (past, lowest)):
            return
        indices = site.tensor(port)
        op, count = site.node.op.key, indices.numel()
        there_are = f"there are {past} {what}" if past != NO_LIMIT else f"there are only {what}"
        number = self._number(site, f"{op} {port}[{{index}}] = {{value}} does not exist: {there_are}")
        self._count = max(self._count, count)
        self._rule(kernels.RANGE, number, indices, count, lowest, past)

    def _apart(self, site: Site, port: str, other: str | None, why: str) -> None:
        ports = (port,) if other is None else (port, other)
        if not self._is_new(site, "apart", ports, ()):
            return
        indices = site.tensor(port)
        others = indices if other is None else site.tensor(other)
        what = "more than once" if other is None else f"that {other} holds too"
        number = self._number(site, f"{site.node.op.key} {port} holds {{value}} {what}; {why}")
        self._count = max(self._count, indices.numel())
        self._rule(kernels.APART, number, indices, indices.numel(), others, others.numel(), other is None)

    def _sequences(self, site: Site) -> None:
        (num_seqs, width), num_rows = site.shape("block_table"), site.shape("q")[0]
        _, num_blocks, block_size, _, _ = site.shape("kv")
        window, causal = site.attr("window"), site.attr("causal")
        ports = ("block_table", "query_start_loc", "seq_lens")
        if not self._is_new(site, "sequences", ports, (num_rows, num_blocks, block_size, window, causal)):
            return
        number = self._number(
            site,
            "attention@1 query_start_loc[{index}] = {value}: it must start with 0, never fall and end within the "
            f"{num_rows} rows of q",
            f"attention@1 seq_lens[{{index}}] = {{value}} must be from 0 to {width * block_size}, what its row of "
            "block_table can hold",
            "attention@1 seq_lens[{index}] = {value} is less than the queries of the sequence",
            f"attention@1 block_table[{{index}}] = {{value}} does not exist: there are {num_blocks} blocks in kv",
        )
        self._num_seqs, self._width = max(self._num_seqs, num_seqs), max(self._width, width)
        indices = (site.tensor("query_start_loc"), site.tensor("seq_lens"), site.tensor("block_table"))
        sizes = (num_seqs, num_rows, width, num_blocks, block_size, window, causal)
        self._rule(kernels.SEQUENCES, number, *indices, *sizes)
