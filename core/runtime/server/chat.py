"""`POST /v1/chat/completions`."""

from __future__ import annotations

from contextlib import aclosing

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from runtime.server.answer import AnswerAssembler
from runtime.server.edge import terms_of
from runtime.server.generation import Generation
from runtime.server.logprobs import chat_logprobs, prompt_logprobs
from runtime.server.prompts import chat_prompt, refuse_tools
from runtime.server.replies import ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion
from runtime.server.requests import ChatCompletionRequest
from runtime.server.sampling import chat_sampling, check_form
from runtime.server.service import Service
from runtime.server.stream import EventStream, json_response, until_disconnect


async def chat_completions(service: Service, body: ChatCompletionRequest, request: Request) -> Response:
    """Answer a conversation, at once or as a stream of events."""
    service.check_model(body.model)
    refuse_tools(body)
    params = chat_sampling(body, service.llm.default_sampling_params)
    token_ids = await chat_prompt(service.llm, body)
    await check_form(service.llm, params)
    generation = await Generation.start(service, [token_ids], params, prefix="chatcmpl", terms=terms_of(request, body))
    if body.stream:
        return EventStream(
            lambda stream: _stream(service, body, generation, stream),
            close=generation.close,
            ping_s=service.settings.ping_s,
        )
    return await until_disconnect(request.receive, _answer(service, body, generation), generation.close)


async def _answer(service: Service, body: ChatCompletionRequest, generation: Generation) -> Response:
    choices = []
    samples = await generation.samples()
    for index, sample in enumerate(samples):
        assembler = AnswerAssembler()
        for text in sample.texts:
            assembler.push(text)
        choices.append(
            ChatChoice(
                index=index,
                message=assembler.message(),
                logprobs=chat_logprobs(service.llm.tokenizer, sample.logprobs) if body.logprobs else None,
                finish_reason=sample.finish_reason,
                stop_reason=sample.stop_reason,
                token_ids=sample.token_ids if body.return_token_ids else UNSET,
            )
        )
    reply = ChatCompletion(
        id=generation.id,
        created=generation.created,
        model=body.model or service.model_name,
        choices=choices,
        usage=generation.usage,
        system_fingerprint=service.fingerprint,
        prompt_token_ids=list(generation.prompts[0]) if body.return_token_ids else UNSET,
    )
    if body.prompt_logprobs is not None:
        reply.prompt_logprobs = prompt_logprobs(samples[0].prompt_logprobs or (), body.prompt_logprobs)
    return json_response(reply)


async def _stream(service: Service, body: ChatCompletionRequest, generation: Generation, stream: EventStream) -> None:
    options = body.stream_options
    with_usage = bool(options and options.include_usage)
    usage_in_each = with_usage and bool(options and options.continuous_usage_stats)
    assemblers: dict[int, AnswerAssembler] = {}
    chunk = ChatChunk(
        id=generation.id,
        created=generation.created,
        model=body.model or service.model_name,
        system_fingerprint=service.fingerprint,
        choices=[],
    )
    if body.return_token_ids:
        chunk.prompt_token_ids = list(generation.prompts[0])
    async with aclosing(generation.outputs()) as outputs:
        async for index, output in outputs:
            is_first = index not in assemblers
            if not (output.text or is_first or output.finish_reason or output.logprobs or body.return_token_ids):
                continue  # a part of a character, or of what may become a stop string
            delta = assemblers.setdefault(index, AnswerAssembler()).push(output.text)
            choice = ChatChunkChoice(index=index, delta=delta, finish_reason=output.finish_reason)
            if output.finish_reason:
                choice.stop_reason = output.stop_reason
            if output.logprobs and body.logprobs:
                choice.logprobs = chat_logprobs(service.llm.tokenizer, output.logprobs)
            if body.return_token_ids:
                choice.token_ids = list(output.token_ids)
            chunk.choices = [choice]
            if with_usage:
                chunk.usage = generation.usage if usage_in_each else None
            await stream.send(chunk)
            chunk.prompt_token_ids = UNSET
    if with_usage:
        chunk.choices, chunk.usage = [], generation.usage
        await stream.send(chunk)
    await stream.done()
