"""Kernel calls that test the contents of indices before anything follows them into memory."""

from __future__ import annotations

from runtime_opencl.calls import Call, Checks, Site, i32, whole

_GROUP = 64
_NO_LIMIT = 2**31 - 1

CheckKey = tuple[object, ...]


class Checker:
    """Makes the checks of a region; the same rule over the same value is checked once."""

    def __init__(self) -> None:
        self.checks = Checks()
        self._known: dict[CheckKey, tuple[int, ...]] = {}

    def calls(self, site: Site, seen: set[CheckKey]) -> list[Call]:
        """Checks that `site` needs and that are not in `seen`, to which they are added."""
        key = site.node.op.key
        if key == "embed@1":
            return self._range(site, "token_ids", site.shape("weight")[0], "rows in the table", seen)
        if key == "gather_rows@1":
            return self._range(site, "rows", site.shape("x")[0], "rows in x", seen)
        if key == "rope@1":
            return self._range(site, "positions", _NO_LIMIT, "positions; a position is 0 or more", seen)
        if key == "kv_write@1":
            _, num_blocks, block_size, _, _ = site.shape("kv")
            num_slots = num_blocks * block_size
            ranges = self._range(site, "slot_mapping", num_slots, "slots in kv, and -1 for nothing", seen, lowest=-1)
            return [*ranges, *self._distinct(site, "slot_mapping", seen)]
        if key in ("kv_copy_blocks@1", "kv_export@1", "kv_import@1"):
            return self._blocks(site, seen)
        return self._sequences(site, seen) if key == "attention@1" else []

    def _number(self, site: Site, key: CheckKey, *messages: str) -> int:
        if key not in self._known:
            self._known[key] = (self.checks.add(*(f"node {site.node.name}: {m}" for m in messages)),)
        return self._known[key][0]

    def _range(self, site: Site, port: str, past: int, what: str, seen: set[CheckKey], lowest: int = 0) -> list[Call]:
        key = ("range", site.node.inputs[port], past, lowest)
        if key in seen:
            return []
        seen.add(key)
        op = site.node.op.key
        there_are = f"there are {past} {what}" if past != _NO_LIMIT else f"there are only {what}"
        number = self._number(site, key, f"{op} {port}[{{index}}] = {{value}} does not exist: {there_are}")
        (count,) = site.shape(port)
        arguments = (site.inputs[port], i32(count), i32(lowest), i32(past), i32(number), site.fault)
        return [_call("check_range", arguments, count)]

    def _distinct(self, site: Site, port: str, seen: set[CheckKey]) -> list[Call]:
        key = ("distinct", site.node.inputs[port])
        if key in seen:
            return []
        seen.add(key)
        message = f"{site.node.op.key} {port} holds {{value}} more than once; every target is written once"
        (count,) = site.shape(port)
        arguments = (site.inputs[port], i32(count), i32(self._number(site, key, message)), site.fault)
        return [_call("check_distinct", arguments, count)]

    def _blocks(self, site: Site, seen: set[CheckKey]) -> list[Call]:
        """Blocks exist; those that are written are distinct, and not read by the same call."""
        num_blocks = site.shape("kv")[1]
        ports = [p for p in ("source_blocks", "target_blocks", "block_ids") if p in site.inputs]
        calls = [c for port in ports for c in self._range(site, port, num_blocks, "blocks in kv", seen)]
        if site.node.op.key != "kv_export@1":
            calls += self._distinct(site, ports[-1], seen)
        if len(ports) == 1:
            return calls
        key = ("apart", *(site.node.inputs[port] for port in ports))
        if key in seen:
            return calls
        seen.add(key)
        message = f"{site.node.op.key} block {{value}} is a source and a target of one call"
        (num_sources,), (count,) = (site.shape(port) for port in ports)
        targets, sources = site.inputs[ports[1]], site.inputs[ports[0]]
        number = self._number(site, key, message)
        arguments = (targets, sources, i32(count), i32(num_sources), i32(number), site.fault)
        return [*calls, _call("check_apart", arguments, count)]

    def _sequences(self, site: Site, seen: set[CheckKey]) -> list[Call]:
        (num_seqs, width), num_rows = site.shape("block_table"), site.shape("q")[0]
        _, num_blocks, block_size, _, _ = site.shape("kv")
        window, is_causal = site.attr("window"), site.attr("causal")
        ports = ("block_table", "query_start_loc", "seq_lens")
        facts = (num_rows, width, num_blocks, block_size, window, is_causal)
        key = ("sequences", *(site.node.inputs[port] for port in ports), *facts)
        if key in seen:
            return []
        seen.add(key)
        number = self._number(
            site,
            key,
            "attention@1 query_start_loc[{index}] = {value}: it must start with 0, never fall and end within the "
            f"{num_rows} rows of q",
            f"attention@1 seq_lens[{{index}}] = {{value}} must be from 0 to {width * block_size}, what its row of "
            "block_table can hold",
            "attention@1 seq_lens[{index}] = {value} is less than the queries of the sequence",
            f"attention@1 block_table[{{index}}] = {{value}} does not exist: there are {num_blocks} blocks in kv",
        )
        arguments = (
            site.inputs["query_start_loc"],
            site.inputs["seq_lens"],
            site.inputs["block_table"],
            i32(num_seqs),
            i32(num_rows),
            i32(width),
            i32(num_blocks),
            i32(block_size),
            i32(window),
            i32(is_causal),
            i32(number),
            site.fault,
        )
        return [_call("check_sequences", arguments, num_seqs)]


def _call(kernel: str, arguments: tuple[object, ...], count: int) -> Call:
    return Call("checks", kernel, arguments, (whole(count, _GROUP),), (_GROUP,))
