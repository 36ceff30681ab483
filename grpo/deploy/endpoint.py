"""An agent whose completions come from any server with OpenAI's HTTP API.

Where the model's chat template is known the prompt's token ids are sent, so a page cannot become a
control token. Where only the server is known messages are sent, and what looks like a control token
is broken up.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from envs.base import Env, Message, Observation
from grpo.deploy.openai_api import OpenAIServer
from grpo.errors import ConfigError
from grpo.option_values import short
from grpo.rollouts.agents import Agent, read_prompt
from grpo.types import Completion

if TYPE_CHECKING:
    from grpo.model.chat import ChatTemplate

COMPLETIONS, CHAT = "/completions", "/chat/completions"

SAMPLE = "Goal: Click \"OK\".\nPage:\n[12] button 'OK, 3.50 €'\n[7] textbox 'naïve 漢字'"
"""Tokenized here and by the server: equal ids mean that both have the same tokenizer."""

PLAIN = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "repeat_penalty": 1.0}
"""Sampling as in training, whatever the server's model recommends: vLLM's and llama.cpp's names."""

_SURROGATES = re.compile("[\ud800-\udfff]")

# Forms of control tokens, by the character to separate from the rest. Full-width forms count, too:
# DeepSeek's tokens have them, and normalizers make ordinary ones of them.
_CONTROL = re.compile(
    r"""[<＜](?=
            [|｜]                                  # <|im_start|>, <|eot_id|>, <｜User｜>
          | [<＜]/?SYS[>＞]                        # <<SYS>>
          | /?(?:s|bos|eos|pad|unk|mask|cls|sep|eod|eot|eom|sop|eop)[>＞]
          | /?(?:think|tool|user|assistant|system|image|audio|video|filename|reponame)[>＞]
          | /?[a-z0-9]*_[a-z0-9_]*[>＞]            # <start_of_turn>, <tool_call>, <BOS_TOKEN>
          | (?:unused|0x)[0-9a-f]+[>＞]            # <unused12>, <0x0A>
        )
      | [\[［](?=/?(?-i:[A-Z_]{3,}|gMASK)[\]］])  # [INST], [/INST], [TOOL_CALLS], [CLS]
    """,
    re.VERBOSE | re.IGNORECASE,
)


def break_control_tokens(text: str) -> str:
    """Put a space behind the first character of what looks like a control token.

    A server tokenizes the text `<|im_start|>` of a page as the token that begins a turn. Behind
    the space it is ordinary text, which model and user can see for what it is.
    """
    return _CONTROL.sub(lambda found: f"{found[0]} ", _SURROGATES.sub("\ufffd", text))


@asynccontextmanager
async def endpoint_agent(
    url: str,
    model: str = "",
    *,
    chat: ChatTemplate | None = None,
    api_key: str = "",
    temperature: float = 0.0,
    max_tokens: int = 24,
    max_prompt_tokens: int = 0,
    regex: str = "",
    chat_template_kwargs: Mapping[str, Any] = MappingProxyType({}),
    deadline_s: float = 120.0,
) -> AsyncIterator[Agent]:
    """Open the agent that asks a server; close its connections at the end of the block.

    Args:
        url: address of the server, such as `http://127.0.0.1:8000/v1`.
        model: one of the server's models; empty for its only one.
        chat: the model's chat template: the server is sent token ids then. None to send messages.
        api_key: sent to this server alone (see `api_key_from_environment`).
        temperature: 0 for greedy completions.
        max_tokens: limit of a completion's length.
        max_prompt_tokens: see `grpo.rollouts.agents.read_prompt`; needs `chat`.
        regex: completions must match it; vLLM's `structured_outputs`. Empty for none.
        chat_template_kwargs: options of the chat template, for a server that renders messages with
            it (vLLM, llama-server); with `chat` they are in the token ids already.
        deadline_s: seconds that a response may take.

    Raises:
        ConfigError: the address is none, there is not one model to choose, or the server has
            another tokenizer than the template.
        GeneratorError: the server fails; from the agent as well.
    """
    options: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
    if regex:
        options["structured_outputs"] = {"regex": regex}
    if chat_template_kwargs and chat is None:
        options["chat_template_kwargs"] = dict(chat_template_kwargs)
    model = model or await only_model(url, api_key=api_key)
    async with OpenAIServer(url, api_key=api_key, deadline_s=deadline_s) as server:
        options["model"] = model
        if chat is None:
            yield _chat_agent(server, options)
        else:
            await _check_tokenizer(server, model, chat)
            yield _token_agent(server, options, chat, max_prompt_tokens)


async def only_model(url: str, *, api_key: str = "") -> str:
    """Return the name of a server's only model.

    Raises:
        ConfigError: it has none or several, or the address is none.
        GeneratorError: the server fails.
    """
    async with OpenAIServer(url, api_key=api_key) as server:
        response = await server.request("/models")
        models = response.get("data") if isinstance(response, dict) else None
        if not isinstance(models, list) or not all(isinstance(each, dict) for each in models):
            raise server.unexpected("/models", "a list of models", response)
        names = [str(each.get("id")) for each in models]
        if len(names) != 1:
            raise ConfigError(
                f"name the model: {server.url} has {server.shown(', '.join(names)) or 'none'}"
            )
        return names[0]


def _chat_agent(server: OpenAIServer, options: dict[str, Any]) -> Agent:
    async def act(observation: Observation, seed: int, env: Env) -> tuple[str, Completion]:
        body = {**options, "messages": _safe(observation.messages), "stream": False}
        choice, finish = _only_choice(server, CHAT, await server.request(CHAT, body))
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else None
        if not isinstance(text, str):
            hint = "; is max_tokens too small for its reasoning?" if finish == "length" else ""
            raise server.unexpected(CHAT, f"a text as the message's content{hint}", choice)
        return _answer(text), Completion((), (), (), -1, finish)

    return act


def _token_agent(
    server: OpenAIServer, options: dict[str, Any], chat: ChatTemplate, max_prompt_tokens: int
) -> Agent:
    ends = {chat.end_id, chat.tokenizer.eos_token_id} - {None}
    options = PLAIN | options | {"stop_token_ids": sorted(ends)}
    options |= {"return_token_ids": True, "skip_special_tokens": False, "stream": False}

    async def act(observation: Observation, seed: int, env: Env) -> tuple[str, Completion]:
        prompt_ids, cut = await asyncio.to_thread(read_prompt, observation, chat, max_prompt_tokens)
        response = await server.request(COMPLETIONS, {**options, "prompt": prompt_ids})
        choice, finish = _only_choice(server, COMPLETIONS, response)
        text, ids = choice.get("text"), choice.get("token_ids") or ()
        if not isinstance(text, str) or not _are_ids(ids):
            raise server.unexpected(COMPLETIONS, "a text", choice)
        unknown = (math.nan,) * len(ids)
        completion = Completion(tuple(prompt_ids), tuple(ids), unknown, -1, finish, cut)
        return chat.read(completion) if ids else _answer(text, chat.opens_reasoning), completion

    return act


async def _check_tokenizer(server: OpenAIServer, model: str, chat: ChatTemplate) -> None:
    """Check that the server's tokens are the chat template's, by a path of vLLM and llama-server.

    Raises:
        ConfigError: they are not, or the server cannot say.
    """
    texts = {"model": model, "prompt": SAMPLE, "content": SAMPLE}  # vLLM's name, llama-server's
    url = f"{server.url.removesuffix('/v1')}/tokenize"
    response = await server.respond(
        url, {**texts, "add_special_tokens": False, "add_special": False}
    )
    try:
        found = response.json()["tokens"] if response.is_success else None
    except (ValueError, LookupError, TypeError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise ConfigError(
            f"{server.url} cannot be asked with token ids: HTTP {response.status_code} from "
            f"{url}, got {server.shown(response.text)}; ask it without the model's folder"
        )
    expected = chat.tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
    if found != expected:
        raise ConfigError(
            f"{server.url} has another tokenizer than {chat.name!r}: expected the tokens "
            f"{short(expected, 60)}, got {short(found, 60)}"
        )


def _only_choice(
    server: OpenAIServer, path: str, response: Any
) -> tuple[dict[str, Any], Literal["stop", "length"]]:
    """Return the choice of a response, and why it ended."""
    choices = response.get("choices") if isinstance(response, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise server.unexpected(path, "one choice", response)
    finish = choices[0].get("finish_reason")
    if finish not in ("stop", "length"):
        raise server.unexpected(path, "finish_reason stop or length", choices[0])
    return choices[0], finish


def _answer(text: str, in_reasoning: bool = False) -> str:
    """Return a completion without the model's reasoning, if that has ended."""
    if in_reasoning or text.lstrip().startswith("<think>"):
        return text.partition("</think>")[2].strip() or text
    return text


def _safe(messages: Sequence[Message]) -> list[Message]:
    return [
        {**message, "content": break_control_tokens(message["content"])} for message in messages
    ]


def _are_ids(ids: Any) -> bool:
    return isinstance(ids, list | tuple) and all(type(i) is int and i >= 0 for i in ids)
