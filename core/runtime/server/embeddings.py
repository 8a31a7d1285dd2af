"""`POST /v1/embeddings`."""

from __future__ import annotations

import asyncio
import base64
import struct

from starlette.requests import Request
from starlette.responses import Response

from runtime.server.failures import bad_request, too_long
from runtime.server.prompts import plain_prompts
from runtime.server.replies import Embedding, EmbeddingList, Usage
from runtime.server.requests import EmbeddingRequest
from runtime.server.service import Service
from runtime.server.stream import json_response, until_disconnect


async def embeddings(service: Service, body: EmbeddingRequest, request: Request) -> Response:
    """One vector of length 1 for each input: the hidden state of the last token, or the mean over all of them."""
    service.check_model(body.model)
    if body.dimensions is not None:
        bad_request("dimensions is not supported: the model's vectors cannot be shortened; leave it out", "dimensions")
    inputs, _ = await plain_prompts(service.llm, body.input, add_special=True, param="input")
    for token_ids in inputs:
        if not token_ids:
            bad_request("an input has no tokens", "input")
        if len(token_ids) > service.llm.max_model_len:
            raise too_long(len(token_ids), service.llm.max_model_len, param="input")
    return await until_disconnect(request.receive, _answer(service, body, inputs))


async def _answer(service: Service, body: EmbeddingRequest, inputs: list[list[int]]) -> Response:
    free = asyncio.Semaphore(service.llm.max_num_seqs)

    async def embed(token_ids: list[int]) -> list[float]:
        async with free:
            return await service.llm.embed(token_ids, body.pooling or "last")

    vectors = await _all_or_none([asyncio.ensure_future(embed(token_ids)) for token_ids in inputs])
    as_text = body.encoding_format == "base64"
    data = [Embedding(index=i, embedding=_base64(v) if as_text else v) for i, v in enumerate(vectors)]
    count = sum(map(len, inputs))
    usage = Usage(prompt_tokens=count, total_tokens=count)
    return json_response(EmbeddingList(data=data, model=body.model or service.model_name, usage=usage))


async def _all_or_none(tasks: list[asyncio.Future[list[float]]]) -> list[list[float]]:
    """Results in order; when one fails or the caller is cancelled, the others are cancelled too."""
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
