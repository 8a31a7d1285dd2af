"""A compiler of whole regions for an imaginary loom, with a queue and memory of its own."""
