"""`POST /v1/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from runtime.engine.request import PositionLogprobs
from runtime.server.edge import terms_of
from runtime.server.generation import Generation
from runtime.server.logprobs import completion_logprobs, echoed_logprobs, joined, prompt_logprobs
from runtime.server.prompts import plain_prompts
from runtime.server.replies import Completion, CompletionChoice, CompletionLogprobs
from runtime.server.requests import CompletionRequest
from runtime.server.sampling import check_form, completion_sampling
from runtime.server.service import Service
from runtime.server.stream import EventStream, json_response, until_disconnect


async def completions(service: Service, body: CompletionRequest, request: Request) -> Response:
    """Continue one or several prompts, at once or as a stream of events."""
    service.check_model(body.model)
    params = completion_sampling(body, service.llm.default_sampling_params)
    add_special = body.add_special_tokens is not False
    prompts, texts = await plain_prompts(service.llm, body.prompt, add_special=add_special, param="prompt")
    await check_form(service.llm, params)
    generation = await Generation.start(service, prompts, params, prefix="cmpl", terms=terms_of(request, body))
    writer = _Writer(service, body, generation, texts)
    if body.stream:
        return EventStream(writer.stream, close=generation.close, ping_s=service.settings.ping_s)
    return await until_disconnect(request.receive, writer.answer(), generation.close)


class _Writer:
    """Writes the outputs of one request in the shape of completions."""

    def __init__(
        self, service: Service, body: CompletionRequest, generation: Generation, texts: Sequence[str | None]
    ) -> None:
        self._service = service
        self._body = body
        self._generation = generation
        self._texts = texts
        self._offsets: dict[int, int] = {}

    async def answer(self) -> Response:
        """The whole answer."""
        body, choices = self._body, []
        for index, sample in enumerate(await self._generation.samples()):
            echo = self._echo(index)
            choice = CompletionChoice(
                index=index,
                text=echo + "".join(sample.texts),
                logprobs=self._logprobs(index, sample.logprobs, sample.prompt_logprobs, echo),
                finish_reason=sample.finish_reason,
                stop_reason=sample.stop_reason,
                token_ids=sample.token_ids if body.return_token_ids else UNSET,
                prompt_token_ids=self._prompt(index) if body.return_token_ids else UNSET,
            )
            if body.prompt_logprobs is not None:
                choice.prompt_logprobs = prompt_logprobs(sample.prompt_logprobs or (), body.prompt_logprobs)
            choices.append(choice)
        reply = self._reply()
        reply.choices, reply.usage = choices, self._generation.usage
        return json_response(reply)

    async def stream(self, stream: EventStream) -> None:
        """The answer as events."""
        body, generation, event = self._body, self._generation, self._reply()
        options = body.stream_options
        with_usage = bool(options and options.include_usage)
        usage_in_each = with_usage and bool(options and options.continuous_usage_stats)
        begun: set[int] = set()
        async with aclosing(generation.outputs()) as outputs:
            async for index, output in outputs:
                is_first = index not in begun
                echo = self._echo(index) if is_first else ""
                text = echo + output.text
                begun.add(index)
                has_logprobs = output.logprobs or output.prompt_logprobs
                if not (text or output.finish_reason or has_logprobs or body.return_token_ids):
                    continue  # a part of a character, or of what may become a stop string
                choice = CompletionChoice(
                    index=index,
                    text=text,
                    logprobs=self._logprobs(index, output.logprobs or (), output.prompt_logprobs, echo),
                    finish_reason=output.finish_reason,
                    stop_reason=output.stop_reason,
                )
                if body.return_token_ids:
                    choice.token_ids = list(output.token_ids)
                    choice.prompt_token_ids = self._prompt(index) if is_first else UNSET
                event.choices = [choice]
                if with_usage:
                    event.usage = generation.usage if usage_in_each else None
                await stream.send(event)
        if with_usage:
            event.choices, event.usage = [], generation.usage
            await stream.send(event)
        await stream.done()

    def _reply(self) -> Completion:
        return Completion(
            id=self._generation.id,
            created=self._generation.created,
            model=self._body.model or self._service.model_name,
            choices=[],
            system_fingerprint=self._service.fingerprint,
        )

    def _prompt(self, index: int) -> list[int]:
        return list(self._generation.prompts[index // self._generation.params.n])

    def _echo(self, index: int) -> str:
        """The prompt's text where it was asked for."""
        if not self._body.echo:
            return ""
        text = self._texts[index // self._generation.params.n]
        if text is None:
            text = self._service.llm.tokenizer.decode(self._prompt(index), skip_special=False)
        return text

    def _logprobs(
        self,
        index: int,
        positions: Sequence[PositionLogprobs],
        of_prompt: Sequence[PositionLogprobs | None] | None,
        echo: str,
    ) -> CompletionLogprobs | None:
        """Those of new tokens, behind those of the prompt where `echo` shows it."""
        count, tokenizer = self._body.logprobs, self._service.llm.tokenizer
        if count is None:
            return None
        prompt = logprobs = None
        if self._body.echo and of_prompt is not None:
            prompt = echoed_logprobs(tokenizer, self._prompt(index), of_prompt, count, echo)
        start = self._offsets.get(index, len(echo))
        if positions:
            logprobs, start = completion_logprobs(tokenizer, positions, start)
        self._offsets[index] = start
        return joined(prompt, logprobs)
