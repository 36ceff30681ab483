"""Ollama's Modelfile for an exported model.

Ollama's templates are Go's, the model's is Jinja's. The Go template is made from pieces of rendered
chats, and only if these pieces give back every chat that the model's own template was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from typing import NamedTuple

from envs.base import Message
from grpo.model.chat import ChatTemplate
from grpo.model.chat_layout import LAYOUTS

_TEXTS = ("System text 1 [2].", "User's text\n  link 'A' [3]", "click('12')", "User text 4 {x}")


class Pieces(NamedTuple):
    """A chat layout: what stands around each message's text.

    Attributes:
        start: what begins a chat whose first message is the system's.
        default: what begins any other chat, such as a system message of the template's own.
        around: the texts before and after a message, by its role.
        prompt: what begins the assistant's turn.
    """

    start: str
    default: str
    around: dict[str, tuple[str, str]]
    prompt: str

    def render(self, messages: Sequence[Message]) -> str:
        """Render a chat to be continued."""
        has_system = messages[0]["role"] == "system"
        before = (self.around[message["role"]] for message in messages)
        texts = (
            head + message["content"] + tail
            for message, (head, tail) in zip(messages, before, strict=True)
        )
        return (self.start if has_system else self.default) + "".join(texts) + self.prompt

    def as_go(self) -> str:
        """Write the layout as a template of Ollama."""
        is_system = 'eq (index .Messages 0).Role "system"'
        roles = [
            f'{{{{ if eq .Role "{role}" }}}}{head}{{{{ .Content }}}}{tail}{{{{ end }}}}'
            for role, (head, tail) in self.around.items()
        ]
        start = self.start
        if self.start != self.default:
            start = f"{{{{ if {is_system} }}}}{self.start}{{{{ else }}}}{self.default}{{{{ end }}}}"
        return f"{start}{{{{ range .Messages }}}}{''.join(roles)}{{{{ end }}}}{self.prompt}"


def find_pieces(chat: ChatTemplate) -> Pieces | None:
    """Take the model's chat layout apart; None if it is not made of such pieces."""
    import jinja2

    if chat.layout != LAYOUTS[0]:
        return None
    roles = ("system", "user", "assistant", "user")
    probe = [{"role": r, "content": text} for r, text in zip(roles, _TEXTS, strict=True)]
    try:
        whole, alone = _render(chat, probe), _render(chat, probe[1:2])
        gaps, rest = [], whole
        for text in _TEXTS:
            gap, _, rest = rest.partition(text)
            gaps.append(gap)
        user_end, assistant_end = (
            _render(chat, probe[:n], to_continue=False).rpartition(_TEXTS[n - 1])[2] for n in (2, 3)
        )
        user_start = _after(gaps[3], assistant_end)
        default = _before(alone.partition(_TEXTS[1])[0], user_start)
        shared = default if gaps[0].startswith(default) else gaps[0]
        pieces = Pieces(
            start=shared,
            default=default,
            around={
                "system": (_after(gaps[0], shared), _before(gaps[1], user_start)),
                "user": (user_start, user_end),
                "assistant": (_after(gaps[2], user_end), assistant_end),
            },
            prompt=_after(rest, user_end),
        )
        chats = [probe, probe[:2], probe[1:2], probe[1:], [*probe, *probe[2:]]]
        exact = all(pieces.render(each) == _render(chat, each) for each in chats)
        other_day = [_render(chat, each, date(2001, 2, 3)) for each in (probe, probe[1:2])]
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError):
        return None
    literals = [pieces.start, pieces.default, pieces.prompt, *sum(pieces.around.values(), ())]
    marked = any(mark in text for mark in ("{{", "}}", '"""') for text in literals)
    return pieces if exact and other_day == [whole, alone] and not marked else None


def modelfile(
    chat: ChatTemplate,
    *,
    base: str,
    adapter: str = "",
    stop: Sequence[str],
    context: int,
    max_new_tokens: int,
) -> str:
    """Return the text of a Modelfile.

    Args:
        chat: the run's chat template.
        base: the file after FROM.
        adapter: the file after ADAPTER; empty for none.
        stop: texts of the tokens that end a completion.
        context: tokens of a prompt and its completion.
        max_new_tokens: of a completion.
    """
    pieces = find_pieces(chat)
    lines = [f"FROM {base}", *([f"ADAPTER {adapter}"] if adapter else [])]
    if pieces is None:
        lines.append(
            "# no TEMPLATE: the model's chat layout has no exact one; the GGUF has its own"
        )
    else:
        lines.append(f'TEMPLATE """{pieces.as_go()}"""')
    lines += ["PARAMETER temperature 0", f"PARAMETER num_ctx {context}"]
    lines.append(f"PARAMETER num_predict {max_new_tokens}")
    lines += [f"PARAMETER stop {json.dumps(text, ensure_ascii=False)}" for text in stop]
    return "\n".join(lines) + "\n"


def _render(
    chat: ChatTemplate,
    messages: Sequence[Message],
    today: date | None = None,
    *,
    to_continue: bool = True,
) -> str:
    now = (today or date.fromisoformat(chat.date)).strftime
    options = {"strftime_now": now} | chat.options
    text: str = chat.tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=to_continue, **options
    )
    return text


def _before(text: str, end: str) -> str:
    if not text.endswith(end):
        raise ValueError(f"expected {text!r} to end with {end!r}")
    return text[: len(text) - len(end)]


def _after(text: str, start: str) -> str:
    if not text.startswith(start):
        raise ValueError(f"expected {text!r} to begin with {start!r}")
    return text[len(start) :]
