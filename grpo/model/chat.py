"""Chat messages as token ids, and completions as text: the only place where either happens.

A chat template is a program that came with the model, and templates differ: some refuse a system
message or lose it, some expect contents as lists, some print today's date or start the model's
reasoning. `ChatTemplate` finds out with a probe chat, when the model is loaded.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from envs.base import Message
from grpo.errors import ConfigError
from grpo.model.chat_layout import LAYOUTS, MARKERS, PROBE, Layout, first_lost, shows_probe
from grpo.model.control_tokens import ControlTokens
from grpo.types import Completion

ENOUGH_FOR_REASONING = 256  # tokens; below, a model that reasons first rarely comes to an answer
_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What an expression of a template can raise."""

_log = logging.getLogger(__name__)


class ChatTemplate:
    """The chat template of a tokenizer.

    Texts of messages reach the model as they are, but for white space at their ends, which some
    templates trim. They never become control tokens (see `grpo.model.control_tokens`).

    Attributes:
        tokenizer: the model's tokenizer.
        options: the template's own options (`chat_template_kwargs`).
        date: the date that the template sees, as in "2026-11-26"; fixed for a run.
        layout: how messages are given to the template.
        end_id: the token that ends the assistant's turn; None if there is none.
        opens_reasoning: True if a prompt ends inside the model's reasoning.
    """

    def __init__(
        self, tokenizer: Any, options: Mapping[str, Any] | None = None, date_string: str = ""
    ) -> None:
        """Find out with a probe chat how the template wants its messages.

        Args:
            tokenizer: a tokenizer with a chat template.
            options: what the template is given beside the messages.
            date_string: the date that it sees, as in "2026-11-26"; empty for today's.

        Raises:
            ConfigError: no layout brings every message into the prompt, in order.
        """
        self.tokenizer, self.options = tokenizer, dict(options or {})
        self.date = date_string or date.today().isoformat()
        self._control = ControlTokens(tokenizer)
        reserved = {*inspect.signature(tokenizer.apply_chat_template).parameters, "messages"}
        reserved = (reserved | {"strftime_now"}) - {"tools", "documents", "chat_template"}
        if wrong := sorted(reserved & self.options.keys()):
            raise ConfigError(f"chat_template_kwargs cannot set {', '.join(wrong)}")
        self.layout = self._choose_layout()
        prompt = self._render(PROBE, to_continue=True).partition(MARKERS[3])[2]
        self.opens_reasoning = prompt.rfind("<think>") > prompt.rfind("</think>")
        self._tail, self._turn_end, self.end_id = self._find_turn_end()

    @property
    def name(self) -> str:
        """The tokenizer's hub id or folder."""
        return str(self.tokenizer.name_or_path)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a chat that the assistant continues.

        Raises:
            ConfigError: the template refuses the messages, loses one or changes its text.
        """
        return self._control.encode(self._render_whole(messages))

    def demonstration(self, messages: Sequence[Message], text: str) -> tuple[list[int], list[int]]:
        """Return the tokens of a prompt, and those of an answer to imitate.

        The answer's tokens are those of the template with the text as the assistant's message,
        less the prompt's, up to and including the token that ends the turn.

        Raises:
            ConfigError: the template does not show the messages as they are, or the answer as a
                continuation of the prompt.
        """
        prompt = self._render_whole(messages)
        answer: Message = {"role": "assistant", "content": text}
        chat = self._render([*messages, answer], to_continue=False)
        prompt_ids = self._control.encode(prompt)
        ids = self._continuation(prompt, prompt_ids, chat.removesuffix(self._tail), text)
        if self.end_id is None:
            reason = "no token ends the assistant's turn"
        elif ids is None or not chat.endswith(self._tail):
            reason = "the prompt is not the beginning of the chat with the answer in it"
        elif (read := self._read(ids[:-1])).strip() != self._as_tokenized(text).strip():
            reason = f"the answer reads {read!r:.60} in it"
        else:
            return prompt_ids, ids
        raise ConfigError(
            f"the chat template of {self.name!r} cannot show the answer {text!r:.60} to imitate: "
            f"{reason}; {self._advice() or 'set warm_start_steps to 0'}"
        )

    def check_demonstrations(self) -> None:
        """Show an answer as a demonstration, before a warm start plays any.

        Raises:
            ConfigError: see `demonstration`.
        """
        self.demonstration((PROBE[0], PROBE[3]), "click('12')")

    def read(self, completion: Completion) -> str:
        """Return a completion as text, without its end token and the model's reasoning.

        Any other control token is visible, and the text begins with U+FFFD then: it is not taken
        for the same text without the token, or for one that spells the token.
        """
        ids = completion.completion_ids[: -1 if completion.finish_reason == "stop" else None]
        return "\ufffd" * (not self._control.ids.isdisjoint(ids)) + self._read(ids)

    def warn_about_reasoning(self, max_new_tokens: int) -> None:
        """Log a warning if the model reasons first and has too few tokens to finish."""
        if max_new_tokens >= ENOUGH_FOR_REASONING:
            return
        advice = self._advice()
        if advice or self.opens_reasoning:
            _log.warning(
                "%r reasons before it answers, and has %d tokens for both: %s",
                self.name,
                max_new_tokens,
                advice or f"--max-new-tokens {ENOUGH_FOR_REASONING} or more",
            )

    def _continuation(
        self, prompt: str, prompt_ids: list[int], chat: str, text: str
    ) -> list[int] | None:
        """Return the tokens after a prompt in a chat that ends with the answer `text`, and the end.

        None if the prompt is not the beginning of the chat.
        """
        end_ids = [] if self._turn_end or self.end_id is None else [self.end_id]
        ids = self._control.encode(chat + self._turn_end) + end_ids
        if ids[: len(prompt_ids)] == prompt_ids:
            return ids[len(prompt_ids) :]
        # Some tokenizers (GPT-2's) join white space at the end of a text, and split it elsewhere.
        # If the answer follows directly, its own tokens are what a model says after the prompt.
        answer = chat[len(prompt) :]
        if chat.startswith(prompt) and answer.strip() == self._control.escape(text).strip():
            return self._control.encode(answer + self._turn_end) + end_ids
        return None

    def _as_tokenized(self, text: str) -> str:
        """Return a text as the tokenizer gives it back."""
        ids = self._control.encode(self._control.escape(text))
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    def _read(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False)
        if self.opens_reasoning or text.lstrip().startswith("<think>"):
            _, finished, answer = text.partition("</think>")
            return answer.strip() if finished else text
        return text

    def _render_whole(self, messages: Sequence[Message]) -> str:
        """Return the text of a chat to continue, if every message is in it as it is."""
        rendered = self._render(messages, to_continue=True)
        lost = first_lost(rendered, self.layout.join(self._control.escape_all(messages)))
        if lost is None:
            return rendered
        raise ConfigError(
            f"the chat template of {self.name!r} loses or changes a message of {len(messages)}: "
            f"{lost['role']} {lost['content']!r:.60}"
        )

    def _render(self, messages: Sequence[Message], *, to_continue: bool, **options: Any) -> str:
        """Return the text of a chat, the messages' control tokens escaped.

        Raises:
            ConfigError: the template, which is foreign code, raised an error.
        """
        import jinja2

        today = date.fromisoformat(self.date)
        try:
            text: str = self.tokenizer.apply_chat_template(
                self.layout.arrange(self._control.escape_all(messages)),
                tokenize=False,
                add_generation_prompt=to_continue,
                **{"strftime_now": today.strftime} | self.options | options,
            )
        except (jinja2.TemplateError, *_ERRORS) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            roles = ", ".join(m["role"] for m in messages)
            raise ConfigError(
                f"the chat template of {self.name!r} refuses messages of {roles}: {reason}"
            ) from error
        return text

    def _choose_layout(self) -> Layout:
        """Return the first layout in which every message is in the prompt once, and in order."""
        refusal = ""
        for layout in LAYOUTS:
            self.layout = layout
            try:
                texts = [self._render(chat, to_continue=True) for chat in (PROBE, PROBE[:2])]
            except ConfigError as error:
                refusal = refusal or str(error)
                continue
            if shows_probe(texts, layout.join(self._control.escape_all(PROBE))):
                if layout != LAYOUTS[0]:
                    _log.warning("the chat template of %r takes %s", self.name, layout)
                return layout
            refusal = refusal or (
                f"the chat template of {self.name!r} loses messages of system, user, assistant, "
                "user, or changes their text or order"
            )
        raise ConfigError(refusal)

    def _find_turn_end(self) -> tuple[str, str, int | None]:
        """Return what follows the assistant's last message, its part up to the end token, and that.

        Where a template ends the turn with ordinary text, which may occur in any text, the token
        is the tokenizer's own end.
        """
        end_id: int | None = self.tokenizer.eos_token_id
        try:
            tail = self._render(PROBE[:3], to_continue=False).partition(MARKERS[2])[2]
        except ConfigError:  # refused: the chat must end with the user
            return "", "", end_id
        found = self._control.pattern.search(tail)
        if found is None or tail[: found.start()].strip():
            return tail, "", end_id
        return tail, tail[: found.end()], self._control.id_of(found[0])

    def _advice(self) -> str:
        """Say which option stops the model from reasoning first; "" if none would."""
        now = self._render(PROBE, to_continue=True)
        source = str(self.tokenizer.get_chat_template(self.options.get("chat_template")))
        if "enable_thinking" not in source:
            return ""
        without = self._render(PROBE, to_continue=True, enable_thinking=False)
        if without == now:
            return ""
        return """set --chat-template-kwargs '{"enable_thinking": false}'"""
