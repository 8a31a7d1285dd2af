"""Calls that test the contents of indices before anything follows them into memory."""

from __future__ import annotations

from runtime.backend import Value
from runtime_torch.calls import Call, Checks, Site, cdiv, launch
from runtime_torch.kernels import checks as kernels
from runtime_torch.settings import next_power

NO_LIMIT = 2**31 - 1


class Checker:
    """Makes the checks of a region, once for each rule over a value from outside; its own indices are right."""

    def __init__(self, from_outside: frozenset[Value]) -> None:
        self.checks = Checks()
        self._from_outside = from_outside
        self._seen: set[object] = set()

    def calls(self, site: Site) -> list[Call]:
        """Checks that `site` needs and that no site before it did."""
        key = site.node.op.key
        if key == "embed@1":
            return self._range(site, "token_ids", site.shape("weight")[0], "rows in the table")
        if key == "gather_rows@1":
            return self._range(site, "rows", site.shape("x")[0], "rows in x")
        if key == "moe_linear@1":
            return self._range(site, "expert_ids", site.shape("weight")[0], "experts")
        if key == "penalize@1":
            calls = self._range(site, "token_ids", site.shape("logits")[1], "tokens in the vocabulary", -1)
            if site.has("bias_ids"):
                calls += self._range(site, "bias_ids", site.shape("logits")[1], "tokens in the vocabulary", -1)
            return calls
        if key == "attention@1":
            return self._sequences(site)
        calls = []
        if key in ("rope@1", "qkv_rope_write@1"):
            calls += self._range(site, "positions", NO_LIMIT, "positions; a position is 0 or more")
        if key in ("kv_write@1", "qkv_rope_write@1"):
            num_slots = site.shape("kv")[1] * site.shape("kv")[2]
            calls += self._range(site, "slot_mapping", num_slots, "slots in kv, and -1 for nothing", -1)
            calls += self._apart(site, "slot_mapping", None, "every target is written once")
        for port in ("block_ids", "source_blocks", "target_blocks"):
            if site.has(port):
                calls += self._range(site, port, site.shape("kv")[1], "blocks in kv")
        if key == "kv_import@1":
            calls += self._apart(site, "block_ids", None, "every target is written once")
        if key == "kv_copy_blocks@1":
            calls += self._apart(site, "target_blocks", None, "every target is written once")
            calls += self._apart(site, "target_blocks", "source_blocks", "the result would depend on the order")
        return calls

    def _is_new(self, site: Site, rule: str, ports: tuple[str, ...], facts: tuple[object, ...]) -> bool:
        values = [site.node.inputs[port] for port in ports]
        key = (rule, *values, *facts)
        if key in self._seen or not any(v in self._from_outside for v in values):
            return False
        self._seen.add(key)
        return True

    def _number(self, site: Site, *messages: str) -> int:
        return self.checks.add(*(f"node {site.node.name}: {m}" for m in messages))

    def _range(self, site: Site, port: str, past: int, what: str, lowest: int = 0) -> list[Call]:
        indices = site.tensor(port)
        if not self._is_new(site, "range", (port,), (past, lowest)) or not indices.numel():
            return []
        op = site.node.op.key
        there_are = f"there are {past} {what}" if past != NO_LIMIT else f"there are only {what}"
        number = self._number(site, f"{op} {port}[{{index}}] = {{value}} does not exist: {there_are}")
        count, block = indices.numel(), min(1024, next_power(indices.numel()))
        arguments = (indices, count, lowest, past, number, site.fault)
        return [launch(kernels.check_range, (cdiv(count, block),), *arguments, BLOCK=block)]

    def _apart(self, site: Site, port: str, other: str | None, why: str) -> list[Call]:
        ports = (port,) if other is None else (port, other)
        indices = site.tensor(port)
        if not self._is_new(site, "apart", ports, ()) or not indices.numel():
            return []
        others = indices if other is None else site.tensor(other)
        what = "more than once" if other is None else f"that {other} holds too"
        number = self._number(site, f"{site.node.op.key} {port} holds {{value}} {what}; {why}")
        count, block = indices.numel(), min(256, next_power(indices.numel()))
        arguments = (indices, count, others, others.numel(), number, site.fault)
        grid = (cdiv(count, block),)
        return [launch(kernels.check_apart, grid, *arguments, EARLIER=other is None, BLOCK=block)]

    def _sequences(self, site: Site) -> list[Call]:
        (num_seqs, width), num_rows = site.shape("block_table"), site.shape("q")[0]
        _, num_blocks, block_size, _, _ = site.shape("kv")
        window, causal = site.attr("window"), site.attr("causal")
        ports = ("block_table", "query_start_loc", "seq_lens")
        if not self._is_new(site, "sequences", ports, (num_rows, num_blocks, block_size, window, causal)):
            return []
        number = self._number(
            site,
            "attention@1 query_start_loc[{index}] = {value}: it must start with 0, never fall and end within the "
            f"{num_rows} rows of q",
            f"attention@1 seq_lens[{{index}}] = {{value}} must be from 0 to {width * block_size}, what its row of "
            "block_table can hold",
            "attention@1 seq_lens[{index}] = {value} is less than the queries of the sequence",
            f"attention@1 block_table[{{index}}] = {{value}} does not exist: there are {num_blocks} blocks in kv",
        )
        seqs = next_power(num_seqs)
        call = launch(
            kernels.check_sequences,
            (1,),
            *(site.tensor("query_start_loc"), site.tensor("seq_lens"), site.tensor("block_table")),
            *(num_seqs, num_rows, width, num_blocks, number, site.fault),
            BLOCK_SIZE=block_size,
            WINDOW=window,
            CAUSAL=causal,
            SEQS=seqs,
            BP=min(next_power(width), max(1, 4096 // seqs)),
        )
        return [call]
