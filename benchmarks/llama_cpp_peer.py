"""llama.cpp through llama-cpp-python's low-level interface: ragged steps in, logits out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray


class LlamaCpp:
    """A model in llama.cpp, on the processor alone.

    max_model_len  positions per sequence
    exact          keep the KV cache in f32 and attention without flash attention, for comparisons of logits; otherwise
                   llama.cpp's own defaults hold, as its users have them
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int,
        max_model_len: int,
        max_num_seqs: int = 1,
        max_num_batched_tokens: int = 512,
        exact: bool = False,
    ) -> None:
        llama_cpp._logger.set_verbose(False)
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
        if not self._model:
            raise ValueError(f"llama.cpp does not load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = max_model_len * max_num_seqs
        params.n_batch = params.n_ubatch = max_num_batched_tokens
        params.n_seq_max = max_num_seqs
        params.n_threads = params.n_threads_batch = threads
        if exact:
            params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.swa_full = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise ValueError(f"llama.cpp makes no context of {params.n_ctx} tokens for {path}")
        self._batch = llama_cpp.llama_batch_init(max_num_batched_tokens, 0, 1)
        self._max_num_batched_tokens = max_num_batched_tokens
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def forward(
        self, token_ids: Sequence[int], positions: Sequence[int], seq_ids: Sequence[int], rows: Sequence[int]
    ) -> NDArray[np.float32]:
        """One step: float32 logits [len(rows), vocab_size] of the given tokens of the step."""
        n = len(token_ids)
        if n > self._max_num_batched_tokens:
            raise ValueError(f"a step of {n} tokens is longer than {self._max_num_batched_tokens}")
        batch = self._batch
        batch.n_tokens = n
        wanted = set(rows)
        for i, (token_id, position, seq_id) in enumerate(zip(token_ids, positions, seq_ids)):
            batch.token[i] = token_id
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = seq_id
            batch.logits[i] = i in wanted
        code = llama_cpp.llama_decode(self._context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode of {n} tokens returned {code}")
        llama_cpp.llama_synchronize(self._context)
        return np.stack([self._row(row) for row in rows])

    def forget(self, seq_id: int, from_position: int) -> None:
        """Drop what the cache holds of a sequence from a position on."""
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self._context), seq_id, from_position, -1)

    def repeat(self, source: int, target: int) -> None:
        """Let the sequence `target` hold what `source` holds."""
        llama_cpp.llama_memory_seq_cp(llama_cpp.llama_get_memory(self._context), source, target, -1, -1)

    def close(self) -> None:
        """Free everything; closing twice is harmless."""
        if self._context:
            llama_cpp.llama_batch_free(self._batch)
            llama_cpp.llama_free(self._context)
            llama_cpp.llama_model_free(self._model)
            self._context = None

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _row(self, index: int) -> Any:
        pointer = llama_cpp.llama_get_logits_ith(self._context, index)
        return np.ctypeslib.as_array(pointer, (self.vocab_size,)).copy()
