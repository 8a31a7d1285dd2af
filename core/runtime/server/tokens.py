"""`POST /tokenize` and `POST /detokenize`, as users of vLLM and of llama-server know them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from runtime.server.failures import bad_request
from runtime.server.prompts import chat_prompt, off_the_loop
from runtime.server.replies import Text, Tokens
from runtime.server.requests import DetokenizeRequest, TokenizeRequest
from runtime.server.service import Service
from runtime.server.stream import json_response


async def tokenize(service: Service, body: TokenizeRequest, _: Request) -> Response:
    """Token ids of a text, or of a conversation as the model would read it."""
    service.check_model(body.model)
    llm = service.llm
    given = [name for name in ("prompt", "content", "messages") if getattr(body, name) is not None]
    if len(given) != 1:
        bad_request("give one of prompt, content and messages", given[1] if given else "prompt")
    if body.messages is not None:
        token_ids = await chat_prompt(llm, body)
    else:
        text = body.prompt if body.prompt is not None else body.content or ""
        # Each of the two servers whose clients come here has its own name for this field, and its own default.
        wishes = [w for w in (body.add_special_tokens, body.add_special) if w is not None]
        add_special = wishes[0] if wishes else body.prompt is not None
        token_ids = await off_the_loop(lambda: llm.tokenizer.encode(text, add_special), len(text))
    return json_response(
        Tokens(
            count=len(token_ids),
            max_model_len=llm.max_model_len,
            tokens=token_ids,
            token_strs=[llm.tokenizer.token_text(t) for t in token_ids] if body.return_token_strs else None,
        )
    )


async def detokenize(service: Service, body: DetokenizeRequest, _: Request) -> Response:
    """The text of token ids."""
    service.check_model(body.model)
    tokenizer = service.llm.tokenizer
    for token_id in body.tokens:
        if not 0 <= token_id < tokenizer.vocab_size:
            bad_request(f"token id {token_id} is not in the vocabulary, 0 .. {tokenizer.vocab_size - 1}", "tokens")
    text = await off_the_loop(lambda: tokenizer.decode(body.tokens, skip_special=False), len(body.tokens))
    return json_response(Text(prompt=text, content=text))
