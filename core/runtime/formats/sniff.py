"""What a file that is not a known model seems to be, for errors that help."""

from __future__ import annotations

from pathlib import Path

from runtime.errors import MalformedFile, RuntimeFault, Unsupported
from runtime.formats.mapped import read_start

DOWNLOAD_AGAIN = "the file is truncated or damaged: download it again"

# Beginnings, and what they mean. The four-letter ones are GGUF's predecessors, little-endian on disk.
_OLD_GGML = {b"lmgg": "GGML", b"fmgg": "GGMF", b"tjgg": "GGJT", b"algg": "GGLA"}
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def describe(path: Path) -> str | None:
    """What the file seems to be, as a noun phrase; None when nothing is recognised."""
    start = read_start(path, 512)
    text = start.lstrip().lower()
    if not start:
        return "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page"
    if start.startswith(_PICKLE_STARTS):
        return "a PyTorch checkpoint (pickle or zip)"
    if start[:4] in _OLD_GGML:
        return f"a {_OLD_GGML[start[:4]]} file, the predecessor of GGUF"
    if start[:4] == b"GGUF":
        return "a GGUF file"
    if len(start) > 8 and start[8:9] == b"{":
        return "a safetensors file"
    if start.startswith(b"\x1f\x8b"):
        return "a gzip archive"
    if text.startswith((b"{", b"[")):
        return "JSON text"
    if not any(start):
        return "zeros (an unfinished download)"
    return None


def _remedy(what: str | None) -> str:
    if what and "LFS" in what:
        return "fetch it with `git lfs pull`"
    if what and ("web page" in what or "empty" in what or "zeros" in what):
        return "download it again, and look at what the server answered"
    if what and "safetensors" in what:
        return "give it the suffix .safetensors, beside its config.json"
    if what and "GGUF file" in what:
        return "give it the suffix .gguf"
    return "give a GGUF file, a .safetensors file beside its config.json, or a Hugging Face directory"


def refuse_unknown(path: Path, expected: str = "a model file") -> RuntimeFault:
    """The error for a file that is not what was expected, saying what it seems to be."""
    what = describe(path)
    if what and ("pickle" in what or "predecessor" in what):
        return refuse_pickle(path) if "pickle" in what else _refuse_old(path, what)
    if path.suffix in _PICKLE_SUFFIXES and what is None:
        return refuse_pickle(path)
    seems = f"it seems to be {what}" if what else f"it begins with {read_start(path, 8).hex(' ')}"
    return MalformedFile(f"'{path}' is not {expected}: {seems}", remedy=_remedy(what))


def refuse_pickle(path: Path) -> Unsupported:
    """The error for a pickled checkpoint."""
    return Unsupported(
        f"'{path}' is a PyTorch pickle checkpoint; reading one can execute code that it carries, so none is read",
        remedy="convert it to safetensors (save_pretrained of transformers does), or use a GGUF file",
    )


def _refuse_old(path: Path, what: str) -> Unsupported:
    return Unsupported(f"'{path}' is {what}", remedy="convert the original model again, to GGUF version 3")
