"""A table of kernels for an imaginary chip with memory of its own, an operation of its own and a format of its own."""

import numpy as np

from runtime.backend import (
    Attr,
    Check,
    DeviceInfo,
    Format,
    InvalidArgument,
    KernelBackend,
    KVLayout,
    Numerics,
    Op,
    PluginRejected,
    Port,
    QuantizedTensor,
    Range,
    Refusal,
    Span,
    Work,
    hookimpl,
    kernel,
)

F32 = Numerics(activation="f32", accumulate="f32", probability="f32", output="f32", order="any")
MOVED = Numerics()


def count_beads(blocks):
    """Two numbers from 0 to 15 in a byte, the lower first."""
    return np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(len(blocks), 32).astype(np.float32)


FORMAT = Format("abacus::u4", "block", 32, 16, count_beads)
SHIFT = Op(
    name="abacus::shift",
    version=1,
    family="abacus",
    doc="y = x + by.",
    inputs=(Port("x", ("T", "K"), doc="beads"),),
    outputs=(Port("y", ("T", "K"), doc="beads, moved"),),
    attrs=(Attr("by", float, "how far", required=True),),
    reference=lambda r, x, by: r("output", x + by),
    work=lambda inputs, outputs, attrs: Work(outputs["y"].nbytes() // 4, inputs["x"].nbytes(), outputs["y"].nbytes()),
    check=Check("ulp", max_ulp=1.0),
    rounding=("output",),
    refusals=(Refusal("by is missing", {"x": ("f32", (2, 4))}),),
)


class Tray:
    """An array in the chip's memory."""

    def __init__(self, beads):
        self.beads = beads

    @property
    def shape(self):
        return self.beads.shape

    @property
    def dtype(self):
        return self.beads.dtype


class Abacus(KernelBackend):
    name, vendor, version, api_level = "abacus", "abacus.example", "1.0.0", 1
    homepage = "https://abacus.example"
    probe_key = "beads=13"
    kv_layouts = (KVLayout(block_sizes=(16,), formats=("f32", "f16"), index_bits=32),)
    step_dims = {"S": Span(1, 64)}

    @hookimpl
    def runtime_register(self, catalogue, formats):
        catalogue.add(SHIFT)
        formats.add(FORMAT)

    def probe(self):
        ones = Tray(np.ones((1, 64), np.float32))
        if self.linear(ones, ones).beads[0, 0] != 64:
            raise PluginRejected("the abacus counts wrongly", remedy="oil its rods")
        info = DeviceInfo(
            index=0,
            name="abacus of thirteen rods",
            memory_bytes=1 << 30,
            score=0.0,
            driver="1.0",
            uuid="abacus-0",
            details={"rods": "13", "rods_reason": "suanpan"},
            notices=("computes in memory of its own",),
        )
        return [info]

    def to_device(self, array):
        return Tray(np.array(array))

    def to_host(self, value):
        return value.beads

    @kernel("linear@1", x="f32", weight=("f32", "f16"), numerics=F32)
    @kernel("linear@1", x="f32", weight="q8_0", K=Range("K", 32, None, 32), numerics=F32, preference=1)
    def linear(self, x, weight, bias=None):
        if isinstance(weight, QuantizedTensor):
            weight = QuantizedTensor(weight.format, weight.shape, weight.data.beads).decode()
        else:
            weight = weight.beads.astype(np.float32)
        y = x.beads @ weight.T
        return Tray(y if bias is None else y + bias.beads)

    @kernel("add@1", a="f32", b="f32", numerics=MOVED, flags=["deterministic", "batch_invariant"])
    def add(self, a, b):
        return Tray(a.beads + b.beads)

    @kernel("glu@1", gate="f32", up="f32", kind=("silu",), numerics=F32)
    def silu(self, gate, up, kind):
        with np.errstate(over="ignore"):
            return Tray(gate.beads / (1 + np.exp(-gate.beads)) * up.beads)

    @kernel("kv_write@1", k="f32", v="f32", kv=("f32", "f16"), numerics=MOVED)
    def kv_write(self, kv, k, v, slot_mapping):
        slots = slot_mapping.beads
        _, blocks, block_size, heads, head_dim = kv.shape
        if (slots >= blocks * block_size).any() or (slots < -1).any():
            raise InvalidArgument(f"a slot of {slots.tolist()} is outside the {blocks * block_size} of the cache")
        used = slots >= 0
        if len(np.unique(slots[used])) != used.sum():
            raise InvalidArgument(f"a slot of {slots.tolist()} is written twice")
        flat = kv.beads.reshape(2, blocks * block_size, heads, head_dim)
        for side, rows in enumerate((k, v)):
            flat[side, slots[used]] = rows.beads[used].reshape(-1, heads, head_dim)
        return kv

    @kernel("concat@1", x="f32")
    def concat(self, x):
        return Tray(np.concatenate([part.beads for part in x], axis=1))

    @kernel("topk@1", x="f32", N=(1, 4096))
    def topk(self, x, k):
        order = np.argsort(-x.beads, axis=1, kind="stable")[:, :k].astype(np.int32)
        return Tray(np.take_along_axis(x.beads, order, axis=1)), Tray(order)

    @kernel("abacus::shift@1", x="f32")
    def shift(self, x, by):
        return Tray(x.beads + x.dtype.type(by))


plugin = Abacus()
