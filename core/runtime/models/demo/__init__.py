"""The packaged demo model: a llama of 3.6 million weights, trained by tools/train_demo."""

from __future__ import annotations

from pathlib import Path

__all__ = ["demo_model_path"]


def demo_model_path() -> Path:
    """The GGUF file of the demo model (Q8_0, context of 1024 tokens, at most 4 MB)."""
    return Path(__file__).parent / "demo-q8_0.gguf"
