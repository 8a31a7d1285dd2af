"""The Python interface: one class for one model, in the shape that users of vLLM know."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from runtime.engine.batch import Job, raise_error, run_jobs
from runtime.engine.config import EngineConfig, Fallback, SchedulingPolicy
from runtime.engine.embedding import Pooling
from runtime.engine.loading import Loaded, Progress, load
from runtime.engine.request import Completion, Request, RequestOutput
from runtime.engine.sampling_params import SamplingParams
from runtime.errors import InvalidArgument
from runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Prompt = str | Sequence[int]
Message = Mapping[str, Any]


class LLM:
    """A model, loaded and ready.

    Example::

        from runtime import LLM, SamplingParams

        with LLM("model.gguf") as llm:
            answer = llm.chat([{"role": "user", "content": "What is the capital of France?"}])
            print(answer.text)

    The arguments are those of `EngineConfig`; without `model` the packaged demo model is loaded. `progress` is called
    with (bytes done, bytes in all) while weights are read.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        backend: str = "auto",
        threads: int | None = None,
        max_model_len: int | None = None,
        kv_format: str | None = None,
        fallback: Fallback = "host",
        *,
        place: str | None = None,
        max_num_seqs: int = 16,
        max_num_batched_tokens: int = 512,
        enable_prefix_caching: bool = True,
        scheduling_policy: SchedulingPolicy = "fcfs",
        num_kv_blocks: int | None = None,
        swap_bytes: int = 0,
        long_prefill_token_threshold: int | None = None,
        check_tensors: bool = False,
        chat_template: str | None = None,
        device_options: Mapping[str, str] | None = None,
        weight_cache: str | Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.config = EngineConfig(
            model=model,
            backend=backend,
            threads=threads,
            max_model_len=max_model_len,
            kv_format=kv_format,
            fallback=fallback,
            place=place,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            enable_prefix_caching=enable_prefix_caching,
            scheduling_policy=scheduling_policy,
            num_kv_blocks=num_kv_blocks,
            swap_bytes=swap_bytes,
            long_prefill_token_threshold=long_prefill_token_threshold,
            check_tensors=check_tensors,
            chat_template=chat_template,
            device_options=device_options or {},
            weight_cache=weight_cache,
        )
        self._loaded: Loaded = load(self.config, progress)
        self._engine = self._loaded.engine

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer: `encode`, `decode`, special tokens."""
        return self._loaded.tokenizer

    @property
    def max_model_len(self) -> int:
        """Context in tokens."""
        return self._engine.max_model_len

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self._engine.vocab_size

    @property
    def status(self) -> tuple[str, ...]:
        """Where the model runs and why, in lines for a person: what `runtime run` prints first."""
        return self._loaded.status

    @property
    def default_sampling_params(self) -> SamplingParams:
        """What the model's makers recommend; used where a call gives no parameters."""
        return self._loaded.model.default_sampling

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` can work: the model brings a template, or one was given."""
        return bool(self.config.chat_template or self.tokenizer.chat_templates)

    @property
    def loaded(self) -> Loaded:
        """Model description, plan and devices, for tools."""
        return self._loaded

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priorities: Sequence[int] | None = None,
    ) -> Completion | list[Completion]:
        """Complete a prompt (text or token ids), or a list of prompts in one batch.

        One prompt gives one `Completion` and raises whatever goes wrong. A list gives a list in the same order;
        `params` is then one for all or a list, and a prompt that cannot be served fails alone: its completion has the
        finish_reason "error" and says why in `error`.
        """
        single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        batch: Sequence[Prompt] = [prompts] if single else prompts  # type: ignore[assignment,list-item]
        if params is None or isinstance(params, SamplingParams):
            params = [params or self.default_sampling_params] * len(batch)
        ranks = [0] * len(batch) if priorities is None else priorities
        if not len(batch) == len(params) == len(ranks):
            raise InvalidArgument(
                f"{len(batch)} prompts, {len(params)} params and {len(ranks)} priorities; there must be one of each"
            )
        jobs = [
            Job(self._encode(p), q, rank, p if isinstance(p, str) else None) for p, q, rank in zip(batch, params, ranks)
        ]
        completions = run_jobs(self._engine, jobs, self.config.max_queued_requests, raise_errors=single)
        return completions[0] if single else completions

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **template_arguments: Any,
    ) -> Completion:
        """Answer a conversation through the model's own chat template."""
        prompt = self.render_chat(messages, tools=tools, **template_arguments)
        job = Job(self.tokenizer.encode_chat(prompt), params or self.default_sampling_params, 0, prompt)
        (completion,) = run_jobs(self._engine, [job], 1, raise_errors=True)
        return completion

    def stream(
        self,
        prompt: Prompt | Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **template_arguments: Any,
    ) -> Generator[RequestOutput, None, None]:
        """Yield what each step adds. `prompt` is text, token ids, or the messages of a conversation.

        Closing the iterator (leaving the loop) aborts the request. Raises what makes the request fail.
        """
        if not isinstance(prompt, str) and len(prompt) and isinstance(prompt[0], Mapping):
            rendered = self.render_chat(prompt, tools=tools, **template_arguments)  # type: ignore[arg-type]
            token_ids = self.tokenizer.encode_chat(rendered)
        else:
            token_ids = self._encode(prompt)  # type: ignore[arg-type]
        samples = self._engine.add_request(token_ids, params or self.default_sampling_params)
        return self._stream(samples)

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **template_arguments: Any,
    ) -> str:
        """The text of a conversation as the model's template writes it, ready for the answer."""
        return self._loaded.render_chat(messages, tools=tools, **template_arguments)

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits of every position: float32 [len(token_ids), vocab_size]."""
        return self._engine.logits(token_ids)

    def embed(self, texts: Prompt | Sequence[Prompt], pooling: Pooling = "last") -> NDArray[np.float32]:
        """Hidden states after the last norm, pooled and of length 1: float32 [hidden_size], or [len(texts), ...]."""
        import numpy as np

        single = isinstance(texts, str) or (len(texts) > 0 and isinstance(texts[0], int))
        batch: Sequence[Prompt] = [texts] if single else texts  # type: ignore[assignment,list-item]
        rows = np.stack([self._engine.embed(self._encode(text), pooling) for text in batch])
        return rows[0] if single else rows

    def close(self) -> None:
        """Abort what runs and free devices and files; closing twice is harmless."""
        self._loaded.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _encode(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)

    def _stream(self, samples: Sequence[Request]) -> Generator[RequestOutput, None, None]:
        request_id = samples[0].request_id
        try:
            while any(r.finish_reason is None for r in samples):
                for output in self._engine.step():
                    if output.request_id == request_id:
                        raise_error(samples[output.index])
                        yield output
        finally:
            self._engine.abort(request_id)
