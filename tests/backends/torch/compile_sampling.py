"""Compiles what sampling launches for chips that are not here, and tells who computes in float64. Run as a program."""

from __future__ import annotations

import sys

import launches
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from runtime_torch.settings import Settings

TARGETS = {"sm90": GPUTarget("cuda", 90, 32), "gfx942": GPUTarget("hip", "gfx942", 64)}

for name in sys.argv[1:]:
    for made in launches.sampling_launches(Settings("gpu", "cuda")):
        attributes = {(i,): [["tt.divisibility", 16]] for i in made.aligned}
        source = ASTSource(made.kernel, dict(made.signature), dict(made.constants), attributes)
        compiled = triton.compile(source, target=TARGETS[name], options=dict(made.options))
        print(name, made.name, "float64" if "f64" in compiled.asm["ttir"] else "")
