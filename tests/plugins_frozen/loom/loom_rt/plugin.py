"""The hooks; the module itself is the plugin."""

from runtime.backend import (
    API_LEVEL,
    BackendInfo,
    DeviceConfig,
    DeviceInfo,
    KVLayout,
    Manifest,
    Numerics,
    OneOf,
    PluginRejected,
    Range,
    Rule,
    Span,
    hookimpl,
    host_memory,
)

F32 = Numerics(activation="f32", accumulate="f32", probability="f32", output="f32", order="any")
SAME = frozenset({"deterministic"})
WEIGHTS = ("f32", "f16", "bf16", "q8_0", "q4_0")
CACHES = ("f16", "f32")


def plain(*ports):
    return tuple(OneOf(f"{port}.format", ("f32",)) for port in ports)


def without(*ports):
    return tuple(OneOf(f"has.{port}", (False,)) for port in ports)


def manifest():
    weight, cache = OneOf("weight.format", WEIGHTS), OneOf("kv.format", CACHES)
    rules = (
        Rule("embed@1", (weight,), F32, SAME),
        Rule("linear@1", (*plain("x"), weight, *without("bias")), F32, SAME),
        Rule("linear@1", (*plain("x", "bias"), weight), F32, SAME, preference=1),
        Rule("rms_norm@1", plain("x", "weight"), F32, SAME),
        Rule("rope@1", plain("x", "inv_freq"), F32, SAME),
        Rule("kv_write@1", (*plain("k", "v"), cache), F32, SAME),
        Rule(
            "attention@1",
            (
                *plain("q"),
                cache,
                *without("sinks", "alibi_slopes"),
                OneOf("causal", (True,)),
                Range("head_dim", 1, 256),
            ),
            F32,
            SAME,
        ),
        Rule("glu@1", (*plain("gate", "up"), OneOf("kind", ("silu",))), F32, SAME),
        Rule("add@1", plain("a", "b"), F32, SAME),
        Rule("gather_rows@1", plain("x"), F32, SAME),
        Rule("argmax@1", plain("x"), F32, SAME),
    )
    return Manifest(
        "loom",
        api_level=API_LEVEL,
        rules=rules,
        kv_layouts=(KVLayout(block_sizes=(16, 32), formats=CACHES, index_bits=32),),
        dims={"T": Span(1, 4096)},
        memory_pools=("loom",),
        collectives=(),
        executes_regions=True,
    )


@hookimpl
def runtime_backend_info():
    return BackendInfo("loom", "loom.example", "1.0.0", 1, "https://loom.example", "shuttle=2")


@hookimpl
def runtime_manifest():
    return manifest()


@hookimpl
def runtime_probe():
    from loom_rt.device import Loom

    info = DeviceInfo(0, "loom of two shuttles", host_memory()[0], 0.0, driver="2.1", details={"shuttles": "2"})
    device = Loom(info, manifest(), DeviceConfig())
    try:
        if not device.weaves_rightly():
            raise PluginRejected("the loom weaves wrongly", remedy="change its shuttle")
    finally:
        device.close()
    return [info]


@hookimpl
def runtime_open(device, config):
    from loom_rt.device import Loom

    return Loom(device, manifest(), config)
