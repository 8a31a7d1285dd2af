"""The Python interface: one class for one model, in the shape that users of vLLM know."""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping, Sequence
from inspect import signature
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, overload

from runtime.engine.batch import Job, ProgressLine, embed_texts, raise_error, run_jobs
from runtime.engine.beam_search import BeamSearchOutput, BeamSearchParams, beam_search
from runtime.engine.config import EngineConfig, Fallback, SchedulingPolicy
from runtime.engine.dispatcher import Dispatcher
from runtime.engine.embedding import Pooling
from runtime.engine.loading import Loaded, Progress, load, render_chat
from runtime.engine.prompts import Message, Prompt, encode_prompt, is_one_prompt, refuse_arguments
from runtime.engine.request import Completion, RequestOutput
from runtime.engine.sampling_params import SamplingParams
from runtime.engine.validation import check_request
from runtime.errors import InvalidArgument
from runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class LLM:
    """A model, loaded and ready.

    Example::

        from runtime import LLM, SamplingParams

        with LLM("model.gguf") as llm:
            answer = llm.chat([{"role": "user", "content": "What is the capital of France?"}])
            print(answer.text)

    The arguments are those of `EngineConfig`; without `model` the packaged demo model is loaded. `progress` is called
    with (bytes done, bytes in all) while weights are read. With a `seed`, requests that have none draw theirs from it,
    in the order in which they are made. An LLM belongs to one thread.
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
        seed: int | None = None,
        progress: Progress | None = None,
        **unknown: NoReturn,
    ) -> None:
        refuse_arguments(unknown, [name for name in signature(LLM).parameters if name != "unknown"])
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
        self._dispatcher = Dispatcher(self._engine)
        self._seeds = None if seed is None else random.Random(seed)
        self._inbox: list[RequestOutput] = []
        """Of requests that are driven by `step`."""
        self._num_unfinished: dict[str, int] = {}
        """Samples of those requests whose last output has not been returned."""

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
        """What the model's makers recommend, as a copy; used where a call gives no parameters."""
        return self._loaded.model.default_sampling.with_()

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` can work: the model brings a template, or one was given."""
        return bool(self.config.chat_template or self.tokenizer.chat_templates)

    @property
    def loaded(self) -> Loaded:
        """Model description, plan and devices, for tools."""
        return self._loaded

    def get_default_sampling_params(self) -> SamplingParams:
        """`default_sampling_params`, by vLLM's name."""
        return self.default_sampling_params

    def get_tokenizer(self) -> Tokenizer:
        """`tokenizer`, by vLLM's name."""
        return self.tokenizer

    @overload
    def generate(  # type: ignore[overload-overlap]  # text is a sequence of texts, and the first form takes it
        self,
        prompts: str | Sequence[int] | Mapping[str, Any],
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        use_tqdm: bool = False,
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int | Sequence[int] = 0,
        use_tqdm: bool = False,
    ) -> list[Completion]: ...

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int | Sequence[int] = 0,
        use_tqdm: bool = False,
    ) -> Completion | list[Completion]:
        """Complete a prompt (text or token ids), or a list of prompts in one batch.

        One prompt gives one `Completion` and raises whatever goes wrong. A list gives a list in the same order, and a
        prompt that cannot be served fails alone: its completion has the finish_reason "error" and says why in `error`.

        sampling_params  one for all, or a list; None takes `default_sampling_params`
        priority         one for all, or a list; smaller numbers go first where the scheduling policy is "priority"
        use_tqdm         show the progress on stderr, where that is a terminal
        """
        single = is_one_prompt(prompts)
        batch: Sequence[Prompt] = [prompts] if single else prompts  # type: ignore[assignment,list-item]
        encoded = [encode_prompt(self.tokenizer, prompt) for prompt in batch]
        return self._complete(encoded, sampling_params, priority, single=single, use_tqdm=use_tqdm)

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        *,
        use_tqdm: bool = False,
        **template: Any,
    ) -> Completion: ...

    @overload
    def chat(
        self,
        messages: Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
        **template: Any,
    ) -> list[Completion]: ...

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
        **template: Any,
    ) -> Completion | list[Completion]:
        """Answer a conversation, or a list of conversations in one batch, through the model's own chat template.

        `template` holds what `render_chat` takes beside the messages; everything else is as in `generate`.
        """
        single = not messages or isinstance(messages[0], Mapping)
        batch: Sequence[Sequence[Message]] = [messages] if single else messages  # type: ignore[assignment,list-item]
        rendered = [self.render_chat(conversation, **template) for conversation in batch]
        encoded = [(self.tokenizer.encode_chat(text), text) for text in rendered]
        return self._complete(encoded, sampling_params, 0, single=single, use_tqdm=use_tqdm)

    def stream(
        self,
        prompt: Prompt | Sequence[Message],
        sampling_params: SamplingParams | None = None,
        **template: Any,
    ) -> Generator[RequestOutput, None, None]:
        """Yield what each step adds. `prompt` is text, token ids, or the messages of a conversation.

        Closing the iterator (leaving the loop) aborts the request. Raises what makes the request fail.
        """
        if not isinstance(prompt, (str, Mapping)) and len(prompt) and isinstance(prompt[0], Mapping):
            token_ids = self.tokenizer.encode_chat(self.render_chat(prompt, **template))  # type: ignore[arg-type]
        else:
            token_ids, _ = encode_prompt(self.tokenizer, prompt)  # type: ignore[arg-type]
        params = self._seeded(sampling_params or self.default_sampling_params).with_()
        check_request(token_ids, params, vocab_size=self.vocab_size, max_model_len=self.max_model_len)
        return self._stream(token_ids, params)

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation as the model's template writes it, ready for the answer.

        tools                   JSON schemas of functions
        chat_template           a template's text that replaces the model's own
        add_generation_prompt   end with what makes the model answer; off with `continue_final_message`
        continue_final_message  end inside the last message, so that the model goes on with it
        chat_template_kwargs    further variables of the template, such as {"enable_thinking": False}
        """
        return render_chat(
            self.tokenizer,
            chat_template or self.config.chat_template,
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **(chat_template_kwargs or {}),
        )

    def beam_search(
        self, prompts: Prompt | Sequence[Prompt], params: BeamSearchParams
    ) -> BeamSearchOutput | list[BeamSearchOutput]:
        """The most probable continuations of a prompt, or of each prompt of a list; see `BeamSearchParams`."""
        single = is_one_prompt(prompts)
        batch: Sequence[Prompt] = [prompts] if single else prompts  # type: ignore[assignment,list-item]
        encoded = [encode_prompt(self.tokenizer, prompt) for prompt in batch]
        outputs = beam_search(self._dispatcher, encoded, params, self.config.max_queued_requests)
        return outputs[0] if single else outputs

    # --- the engine driven by hand

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
    ) -> None:
        """Queue a prompt whose outputs `step` returns, under an id that is free."""
        token_ids, _ = encode_prompt(self.tokenizer, prompt)
        params = self._seeded(params or self.default_sampling_params)
        samples = self._dispatcher.add(token_ids, params, self._inbox, request_id, priority=priority)
        self._num_unfinished[request_id] = len(samples)

    def step(self) -> list[RequestOutput]:
        """One step of the engine: what it added to each request of `add_request`, the new part only.

        `generate`, `chat`, `embed` and open streams can be used in between; they step these requests too, and the next
        `step` returns what that added.
        """
        self._dispatcher.step()
        outputs = _taken(self._inbox)
        for output in outputs:
            if output.finished:
                self._num_unfinished[output.request_id] -= 1
                if not self._num_unfinished[output.request_id]:
                    self._forget(output.request_id)
        return outputs

    def has_unfinished_requests(self) -> bool:
        """Whether `step` has anything to return, now or later."""
        return bool(self._num_unfinished)

    def abort_request(self, request_id: str) -> list[RequestOutput]:
        """End a request of `add_request`; returns what `step` had not returned yet, none where it is over."""
        if request_id not in self._num_unfinished:
            return []
        last = self._forget(request_id)
        kept = [output for output in self._inbox if output.request_id == request_id]
        self._inbox[:] = [output for output in self._inbox if output.request_id != request_id]
        return kept + last

    # --- vectors

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits of every position: float32 [len(token_ids), vocab_size]."""
        return self._engine.logits(token_ids)

    def embed(
        self, prompts: Prompt | Sequence[Prompt], pooling: Pooling = "last", *, use_tqdm: bool = False
    ) -> NDArray[np.float32]:
        """Hidden states after the last norm, pooled and of length 1: float32 [hidden_size], or [len(prompts), ...].

        pooling   "last" takes the last token's, "mean" the mean of all
        use_tqdm  show the progress on stderr, where that is a terminal
        """
        import numpy as np

        single = is_one_prompt(prompts)
        batch: Sequence[Prompt] = [prompts] if single else prompts  # type: ignore[assignment,list-item]
        if not batch:
            return np.empty((0, self._loaded.spec.hidden_size), np.float32)
        texts = [encode_prompt(self.tokenizer, prompt)[0] for prompt in batch]
        progress = ProgressLine(len(texts)) if use_tqdm else None
        rows = np.stack(embed_texts(self._dispatcher, texts, pooling, progress=progress))
        return rows[0] if single else rows

    def score(
        self,
        queries: Prompt | Sequence[Prompt],
        documents: Prompt | Sequence[Prompt],
        pooling: Pooling = "last",
        *,
        use_tqdm: bool = False,
    ) -> NDArray[np.float32]:
        """Cosines between the embeddings of queries and documents, pair by pair: float32 [len(documents)].

        One query is compared with every document; a list of queries must be as long as that of the documents.
        """
        lists: list[list[Any]] = [[t] if is_one_prompt(t) else list(t) for t in (queries, documents)]
        num_queries, num_documents = map(len, lists)
        if num_queries not in (1, num_documents):
            raise InvalidArgument(
                f"{num_queries} queries and {num_documents} documents; give one query, or one for each document"
            )
        vectors = self.embed([*lists[0], *lists[1]], pooling, use_tqdm=use_tqdm)
        cosines: NDArray[np.float32] = (vectors[:num_queries] * vectors[num_queries:]).sum(axis=1)
        return cosines

    def close(self) -> None:
        """Abort what runs and free devices and files; closing twice is harmless."""
        self._loaded.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _complete(
        self,
        encoded: Sequence[tuple[list[int], str | None]],
        params: SamplingParams | Sequence[SamplingParams] | None,
        priority: int | Sequence[int],
        *,
        single: bool,
        use_tqdm: bool,
    ) -> Completion | list[Completion]:
        count = len(encoded)
        if params is None or isinstance(params, SamplingParams):
            params = [params or self.default_sampling_params] * count
        priorities = [priority] * count if isinstance(priority, int) else priority
        if not count == len(params) == len(priorities):
            raise InvalidArgument(
                f"{count} prompts, {len(params)} sampling_params and {len(priorities)} priorities; there must be one "
                "of each"
            )
        jobs = [
            Job(token_ids, self._seeded(p), rank, text)
            for (token_ids, text), p, rank in zip(encoded, params, priorities)
        ]
        progress = ProgressLine(sum(job.params.n for job in jobs)) if use_tqdm else None
        limit = self.config.max_queued_requests
        completions = run_jobs(self._dispatcher, jobs, limit, raise_errors=single, progress=progress)
        return completions[0] if single else completions

    def _seeded(self, params: SamplingParams) -> SamplingParams:
        if self._seeds is None or params.seed is not None:
            return params
        return params.with_(seed=self._seeds.getrandbits(53))

    def _stream(self, token_ids: Sequence[int], params: SamplingParams) -> Generator[RequestOutput, None, None]:
        inbox: list[RequestOutput] = []
        samples = self._dispatcher.add(token_ids, params, inbox)
        num_unfinished = len(samples)
        try:
            while num_unfinished:
                if not inbox:
                    self._dispatcher.step()
                for output in _taken(inbox):
                    raise_error(samples[output.index])
                    num_unfinished -= output.finished
                    yield output
        finally:
            self._dispatcher.drop(samples[0].request_id)

    def _forget(self, request_id: str) -> list[RequestOutput]:
        del self._num_unfinished[request_id]
        return self._dispatcher.drop(request_id)


def _taken(inbox: list[RequestOutput]) -> list[RequestOutput]:
    """All that is in the box; it is empty then."""
    outputs = inbox.copy()
    inbox.clear()
    return outputs
