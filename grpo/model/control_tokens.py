"""Tokenizing rendered chats so that control tokens come from the chat template alone.

A tokenizer turns the text `<|im_end|>` into the token that ends a turn, wherever it stands. Page
text and goals are data: what they contain stays text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import Any

from grpo.errors import ConfigError

REASONING = ("<think>", "</think>")
"""Templates look for these in messages; in some tokenizers they are ordinary text."""


class ControlTokens:
    """The tokens of a tokenizer that mean something to the model beside their text.

    These are all added tokens, special or not, except runs of white space.

    Attributes:
        pattern: finds the control tokens in what a template has rendered.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Collect the control tokens.

        Raises:
            ConfigError: the tokenizer is not one of the `tokenizers` library.
        """
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise ConfigError(
                f"the tokenizer of {tokenizer.name_or_path!r} must be one of the tokenizers "
                f"library (tokenizer.json), got {type(tokenizer).__name__}"
            )
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self._ids = {token.content: i for i, token in added if token.content.strip()}
        self._counted = set(self._ids.values()) - {tokenizer.unk_token_id}
        # Texts stand in for one another under names that nobody who writes a page can know.
        self._secret = secrets.token_hex(8)
        self._texts = [*self._ids, *(text for text in REASONING if text not in self._ids)]
        self._names = {text: self._name("text", i) for i, text in enumerate(self._texts)}
        self._token_names = {text: self._name("token", i) for i, text in enumerate(self._texts)}
        self._escaped = re.compile(self._name("text", r"(\d+)"))
        self._written = _any_of(self._texts)
        self.pattern = _any_of(self._ids)

    def id_of(self, text: str) -> int:
        """Return the id of the control token with this text."""
        token_id: int = self._ids[text]
        return token_id

    def escape(self, text: str) -> str:
        """Replace what looks like a control token by names that no template looks for."""
        return self._written.sub(lambda found: self._names[found[0]], text)

    def encode(self, rendered: str) -> list[int]:
        """Tokenize a rendered chat whose messages were escaped before.

        Without escapes these are the tokenizer's own ids. With them, control tokens are those that
        the template wrote, and what was escaped is tokenized as ordinary text.
        """
        if self._secret not in rendered:
            ids: list[int] = self._tokenizer(rendered, add_special_tokens=False)["input_ids"]
            found = [self._ids[text] for text in self.pattern.findall(rendered)]
            if sum(i in self._counted for i in ids) == sum(i in self._counted for i in found):
                return ids  # else a normalizer made a control token of other text
        text = self.pattern.sub(lambda found: self._token_names[found[0]], rendered)
        text = self._escaped.sub(lambda found: self._texts[int(found[1])], text)
        return list(self._renamed.encode(text, add_special_tokens=False).ids)

    @cached_property
    def _renamed(self) -> Any:
        """The same tokenizer, whose control tokens have names that no text contains.

        Splitting the text at them instead would change how a tokenizer treats the start of a text.
        """
        from tokenizers import Tokenizer

        names = self._token_names
        state = json.loads(self._tokenizer.backend_tokenizer.to_str())
        for token in state["added_tokens"]:
            if token["content"] in self._ids:
                token |= {"content": names[token["content"]], "normalized": False}
        names = {text: name for text, name in names.items() if text in self._ids}
        model = state["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(word, word): i for word, i in model["vocab"].items()}
        else:  # Unigram: pairs of a word and its score
            model["vocab"] = [[names.get(word, word), score] for word, score in model["vocab"]]
        if "merges" in model:
            pairs = [m if isinstance(m, list) else m.split(" ") for m in model["merges"]]
            model["merges"] = [m for m in pairs if not names.keys() & {*m, "".join(m)}]
        if model.get("unk_token") in names:
            model["unk_token"] = names[model["unk_token"]]
        state |= {"post_processor": None, "truncation": None, "padding": None}
        return Tokenizer.from_str(json.dumps(state))

    def _name(self, kind: str, number: int | str) -> str:
        """Return a name: private characters, which normalizers leave alone, around the secret."""
        return f"\U0010fffd{self._secret}{kind}{number}\U0010fffd"


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of the texts, the longest at each place.

    Texts that begin alike are one branch: some models have thousands of control tokens.
    """

    def branch(texts: Iterable[str]) -> str:
        ends = sorted(texts)
        if len(ends) == 1:
            return re.escape(ends[0])
        by_first = groupby((end for end in ends if end), key=itemgetter(0))
        options = [re.escape(first) + branch(end[1:] for end in group) for first, group in by_first]
        return f"(?:{'|'.join(options)})" + "?" * ("" in ends)

    every = set(texts)
    return re.compile(branch(every) if every else "(?!)")
