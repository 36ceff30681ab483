"""The chat formats of public models as templates: messages of text alone, without tools.

Written for these tests after each model's own template; for a chat of system, user and assistant
they print the same text (`tests/grpo/model/test_chat.py` compares those that TRL ships).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelTemplate:
    """A model's chat template, and what its tokenizer brings with it.

    Attributes:
        source: the template.
        tokens: the control tokens that it writes; the first ends the assistant's turn.
        bos: the token that begins a text; "" if the template has none.
        eos: the tokenizer's end of a text.
        layout: how messages are given to it: "", "merged", "list".
        dated: True if it prints the day.
        options: what switches the model's reasoning off.
        demonstrates: False if it cannot show an answer after its prompt.
        trl: name of TRL's copy of the original; "" if it has none.
    """

    source: str
    tokens: tuple[str, ...]
    bos: str = ""
    eos: str = ""
    layout: str = ""
    dated: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    demonstrates: bool = True
    trl: str = ""

    @property
    def end(self) -> str:
        """The token that ends the assistant's turn."""
        return self.tokens[0]


LLAMA_3_2 = """{{ bos_token }}{% set day = date_string or strftime_now('%d %b %Y') -%}
{% set given = messages[0]['role'] == 'system' -%}
{{ '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n' -}}
{{ 'Today Date: ' + day + '\n\n' -}}
{{ (messages[0]['content'] | trim if given else '') + '<|eot_id|>' -}}
{% for m in (messages[1:] if given else messages) -%}
{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' -}}
{{ m['content'] | trim + '<|eot_id|>' -}}
{% endfor -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' if add_generation_prompt }}"""

MISTRAL_7B_V0_3 = """{% set chat = messages[1:] if messages[0].role == 'system' else messages -%}
{{ bos_token -}}
{% for m in chat -%}
{% if m.role not in ('user', 'assistant') or (m.role == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('roles must alternate user and assistant after the system message') -}}
{% endif -%}
{% if m.role == 'assistant' -%}
{{ ' ' + m.content | trim + eos_token -}}
{% elif loop.last and messages[0].role == 'system' -%}
{{ '[INST] ' + messages[0].content + '\n\n' + m.content + '[/INST]' -}}
{% else -%}
{{ '[INST] ' + m.content + '[/INST]' -}}
{% endif -%}
{% endfor -%}"""

GEMMA_2 = """{{ bos_token -}}
{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif -%}
{% for m in messages -%}
{% if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
{% endif -%}
{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' -}}
{{ m.content | trim + '<end_of_turn>\n' -}}
{% endfor -%}
{{ '<start_of_turn>model\n' if add_generation_prompt }}"""

QWEN_2_5 = """{% if messages[0].role != 'system' -%}
{{ '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. ' -}}
{{ 'You are a helpful assistant.<|im_end|>\n' -}}
{% endif -%}
{% for m in messages -%}
{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}
{% endfor -%}
{{ '<|im_start|>assistant\n' if add_generation_prompt }}"""

QWEN_3 = """{% set seen = namespace(query=-1) -%}
{% for m in messages if m.role == 'user' and m.content is string -%}
{% set seen.query = messages.index(m) -%}
{% endfor -%}
{% for m in messages -%}
{% set text = m.content if m.content is string else '' -%}
{% set parts = text.split('</think>') -%}
{{ '<|im_start|>' + m.role + '\n' -}}
{% if m.role == 'assistant' and loop.last -%}
{% set thought = parts[0].split('<think>')[-1] if parts | length > 1 else '' -%}
{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + parts[-1].lstrip('\n') -}}
{% elif m.role == 'assistant' and parts | length > 1 -%}
{{ parts[-1].lstrip('\n') -}}
{% else -%}
{{ text -}}
{% endif -%}
{{ '<|im_end|>\n' -}}
{% endfor -%}
{% if add_generation_prompt -%}
{{ '<|im_start|>assistant\n' -}}
{{ '<think>\n\n</think>\n\n' if enable_thinking is defined and enable_thinking is false -}}
{% endif -%}"""

QWEN_3_5 = """{% for m in messages -%}
{% set parts = (m.content | trim).split('</think>') -%}
{% set thought = parts[0].split('<think>')[-1] if parts | length > 1 else '' -%}
{{ '<|im_start|>' + m.role + '\n' -}}
{{ '<think>\n' + thought | trim + '\n</think>\n\n' if m.role == 'assistant' and loop.last -}}
{{ (parts[-1].lstrip('\n') if m.role == 'assistant' else m.content | trim) + '<|im_end|>\n' -}}
{% endfor -%}
{% if add_generation_prompt -%}
{% set thinks = enable_thinking is not defined or enable_thinking -%}
{{ '<|im_start|>assistant\n<think>\n' + ('' if thinks else '\n</think>\n\n') -}}
{% endif -%}"""

SMOLLM3 = """{% set thinks = enable_thinking is not defined or enable_thinking -%}
{% set mode = '/think' if thinks else '/no_think' -%}
{% set given = messages[0].content if messages[0].role == 'system' else '' -%}
{% set mode = '/no_think' if '/no_think' in given else '/think' if '/think' in given else mode -%}
{% set rules = given.replace('/no_think', '').replace('/think', '').rstrip() -%}
{{ '<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: ' -}}
{{ strftime_now('%d %B %Y') + '\nReasoning Mode: ' + mode + '\n\n## Custom Instructions\n\n' -}}
{{ (rules or 'You are a helpful AI assistant named SmolLM, trained by Hugging Face.') + '\n\n' -}}
{% set empty = '<think>\n\n</think>\n' if mode == '/no_think' else '' -%}
{% for m in messages if m.role != 'system' -%}
{% set text = m.content if m.content is string else '' -%}
{{ '<|im_start|>' + m.role + '\n' -}}
{{ (empty + text.lstrip('\n') if m.role == 'assistant' else text) + '<|im_end|>\n' -}}
{% endfor -%}
{{ '<|im_start|>assistant\n' + empty if add_generation_prompt }}"""

PHI_3 = """{% for m in messages if m.role in ('system', 'user', 'assistant') -%}
{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' -}}
{% endfor -%}
{{ '<|assistant|>\n' if add_generation_prompt else eos_token }}"""

R1_DISTILL = """{{ bos_token -}}
{% for m in messages if m.role == 'system' -%}
{{ m.content if loop.last -}}
{% endfor -%}
{% for m in messages -%}
{% if m.role == 'user' -%}
{{ '<｜User｜>' + m.content -}}
{% elif m.role == 'assistant' -%}
{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' -}}
{% endif -%}
{% endfor -%}
{{ '<｜Assistant｜><think>\n' if add_generation_prompt }}"""

LFM2 = """{{ bos_token -}}
{% for m in messages if m.content or m.role != 'system' -%}
{{ '<|im_start|>' + m.role + '\n' -}}
{{ (m.content if m.content is string else m.content | tojson) + '<|im_end|>\n' -}}
{% endfor -%}
{{ '<|im_start|>assistant\n' if add_generation_prompt }}"""

SMOLVLM = """<|im_start|>{% for m in messages -%}
{{ m.role | capitalize }}{{ ':' if m.content[0].type == 'image' else ': ' -}}
{% for part in m.content if part.type in ('text', 'image') -%}
{{ part.text if part.type == 'text' else '<image>' -}}
{% endfor -%}
{{ '<end_of_utterance>\n' -}}
{% endfor -%}
{{ 'Assistant:' if add_generation_prompt }}"""

LLAVA_NEXT = """{% for m in messages -%}
{% if m.role == 'system' -%}
{{ '<<SYS>>\n' + m.content[0].text + '\n<</SYS>>\n\n' -}}
{% elif m.role == 'user' -%}
{{ '[INST] ' }}{% for part in m.content if part.type == 'text' %}{{ part.text }}{% endfor -%}
{{ ' [/INST]' -}}
{% else -%}
{{ ' ' + m.content[0].text + '</s> ' -}}
{% endif -%}
{% endfor -%}"""

ZEPHYR = """{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' -}}
{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor -%}"""

GRANITE_3 = """{% if messages[0].role == 'system' -%}
{% set rules = messages[0].content -%}
{% else -%}
{% set rules = "Knowledge Cutoff Date: April 2024.\nToday's Date: " + strftime_now('%B %d, %Y') -%}
{% endif -%}
{{ '<|start_of_role|>system<|end_of_role|>' + rules + '<|end_of_text|>\n' -}}
{% for m in messages if m.role != 'system' -%}
{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' -}}
{% endfor -%}
{{ '<|start_of_role|>assistant<|end_of_role|>' if add_generation_prompt }}"""

NO_THINKING = {"enable_thinking": False}
IM = ("<|im_end|>", "<|im_start|>")
THINK = (*IM, "<think>", "</think>")

TEMPLATES: dict[str, ModelTemplate] = {
    "meta-llama/Llama-3.2-1B-Instruct": ModelTemplate(
        LLAMA_3_2,
        ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        bos="<|begin_of_text|>",
        dated=True,
        trl="llama3_2",
    ),
    "mistralai/Mistral-7B-Instruct-v0.3": ModelTemplate(
        MISTRAL_7B_V0_3, ("</s>", "[INST]", "[/INST]"), bos="<s>", eos="</s>", layout="merged"
    ),
    "google/gemma-2-2b-it": ModelTemplate(
        GEMMA_2,
        ("<end_of_turn>", "<start_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        layout="merged",
        trl="gemma",
    ),
    "Qwen/Qwen2.5-0.5B-Instruct": ModelTemplate(QWEN_2_5, IM, trl="qwen2_5"),
    "Qwen/Qwen3-0.6B": ModelTemplate(QWEN_3, THINK, options=NO_THINKING, trl="qwen3"),
    "Qwen/Qwen3.5-4B": ModelTemplate(QWEN_3_5, THINK, options=NO_THINKING, trl="qwen3_5_think"),
    "HuggingFaceTB/SmolLM3-3B": ModelTemplate(SMOLLM3, THINK, dated=True, options=NO_THINKING),
    "microsoft/Phi-3-mini-4k-instruct": ModelTemplate(
        PHI_3,
        ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|endoftext|>"),
        eos="<|endoftext|>",
        trl="phi3",
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": ModelTemplate(
        R1_DISTILL,
        ("<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        demonstrates=False,
        trl="deepseek_r1_distill",
    ),
    "LiquidAI/LFM2-350M": ModelTemplate(LFM2, IM, bos="<|startoftext|>", trl="lfm2"),
    "HuggingFaceTB/SmolVLM-256M-Instruct": ModelTemplate(
        SMOLVLM,
        ("<end_of_utterance>", "<|im_start|>", "<image>"),
        eos="<end_of_utterance>",
        layout="list",
        trl="smolvlm",
    ),
    "llava-hf/llava-v1.6-mistral-7b-hf": ModelTemplate(
        LLAVA_NEXT, ("</s>", "<s>", "<image>"), eos="</s>", layout="list", trl="llava_next"
    ),
    "HuggingFaceH4/zephyr-7b-beta": ModelTemplate(ZEPHYR, ("</s>", "<s>"), eos="</s>"),
    "ibm-granite/granite-3.1-2b-instruct": ModelTemplate(
        GRANITE_3,
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"),
        eos="<|end_of_text|>",
    ),
}
"""By the name of the model."""


def with_template(tokenizer: Any, template: ModelTemplate) -> Any:
    """Return a copy of a tokenizer that has a model's template and its control tokens."""
    from transformers import AddedToken

    tokenizer = copy.deepcopy(tokenizer)
    wanted = [*template.tokens, template.bos, template.eos]
    tokens = [AddedToken(text, special=True, normalized=False) for text in wanted if text]
    tokenizer.add_tokens(tokens, special_tokens=True)
    if template.bos:
        tokenizer.bos_token = template.bos
    if template.eos:
        tokenizer.eos_token = template.eos
    tokenizer.chat_template = template.source
    return tokenizer
