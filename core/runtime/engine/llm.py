"""The Python interface: one class for one model, in the shape that users of vLLM know."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from runtime.engine.config import EngineConfig, Fallback
from runtime.engine.loading import Loaded, Progress, load
from runtime.engine.request import Completion, PositionLogprobs, Request, RequestOutput
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
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None = None
    ) -> Completion | list[Completion]:
        """Complete a prompt (text or token ids), or each of a list of prompts in one batch.

        One prompt gives one `Completion`; a list gives a list in the same order.
        """
        single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        batch: Sequence[Prompt] = [prompts] if single else prompts  # type: ignore[assignment,list-item]
        completions = self._complete([self._encode(p) for p in batch], params or self.default_sampling_params)
        for i, prompt in enumerate(batch):
            if isinstance(prompt, str):
                completions[i] = _with_prompt(completions[i], prompt)
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
        (completion,) = self._complete([self.tokenizer.encode_chat(prompt)], params or self.default_sampling_params)
        return _with_prompt(completion, prompt)

    def stream(
        self,
        prompt: Prompt | Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **template_arguments: Any,
    ) -> Generator[RequestOutput, None, None]:
        """Yield what each step adds. `prompt` is text, token ids, or the messages of a conversation.

        Closing the iterator (leaving the loop) aborts the request.
        """
        if not isinstance(prompt, str) and len(prompt) and isinstance(prompt[0], Mapping):
            rendered = self.render_chat(prompt, tools=tools, **template_arguments)  # type: ignore[arg-type]
            token_ids = self.tokenizer.encode_chat(rendered)
        else:
            token_ids = self._encode(prompt)  # type: ignore[arg-type]
        request = self._engine.add_request(token_ids, params or self.default_sampling_params)
        return self._stream(request)

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

    def _complete(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[Completion]:
        requests: list[Request] = []
        try:
            for token_ids in prompts:
                requests.append(self._engine.add_request(token_ids, params))
        except InvalidArgument:
            for request in requests:
                self._engine.abort(request.request_id)
            raise
        collected: dict[str, list[RequestOutput]] = {r.request_id: [] for r in requests}
        self._drive(lambda output: collected[output.request_id].append(output), requests)
        return [_completion(r, collected[r.request_id]) for r in requests]

    def _drive(self, receive: Callable[[RequestOutput], None], requests: Sequence[Request]) -> None:
        try:
            while self._engine.has_work:
                for output in self._engine.step():
                    receive(output)
        except BaseException:  # whatever stops the loop (Ctrl-C included), no request may keep its blocks
            for request in requests:
                self._engine.abort(request.request_id)
            raise

    def _stream(self, request: Request) -> Generator[RequestOutput, None, None]:
        try:
            while request.finish_reason is None:
                for output in self._engine.step():
                    if output.request_id == request.request_id:
                        yield output
        finally:
            self._engine.abort(request.request_id)


def _with_prompt(completion: Completion, prompt: str) -> Completion:
    from dataclasses import replace

    return replace(completion, prompt=prompt)


def _completion(request: Request, outputs: Sequence[RequestOutput]) -> Completion:
    assert request.finish_reason is not None
    logprobs: tuple[PositionLogprobs, ...] | None = None
    if request.params.logprobs is not None:
        logprobs = tuple(p for o in outputs for p in o.logprobs or ())
    return Completion(
        prompt=None,
        prompt_token_ids=tuple(request.prompt_token_ids),
        text="".join(o.text for o in outputs),
        token_ids=tuple(request.output_token_ids),
        finish_reason=request.finish_reason,
        stop_reason=outputs[-1].stop_reason,
        logprobs=logprobs,
        seed=request.seed,
    )
