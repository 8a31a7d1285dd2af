"""The verbs `conformance` and `verify`, found by the `runtime` command through the entry points runtime.verbs."""
