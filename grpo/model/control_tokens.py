"""Tokenizing rendered chats so that control tokens come from the chat template alone.

A tokenizer turns the text `<|im_end|>` into the token that ends a turn, wherever it stands. Page
text and goals are data: what they contain stays text.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

from envs.base import Message
from grpo.errors import ConfigError

REASONING = ("<think>", "</think>")
"""Templates look for these in messages; in some tokenizers they are ordinary text."""

_SAMPLE = " ".join(string.digits + string.ascii_letters + string.punctuation)
_SURROGATES = re.compile("[\ud800-\udfff]")  # half a character, which no tokenizer takes


class ControlTokens:
    """The tokens of a tokenizer that mean something to the model beside their text.

    These are the special tokens, and other added tokens that look like markup (`<think>`,
    `[INST]`). Runs of white space and added words are ordinary text.

    Attributes:
        pattern: finds the control tokens in what a template has rendered.
        ids: the control tokens, but for those around the model's reasoning.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Collect the control tokens.

        Raises:
            ConfigError: the tokenizer is not one of the `tokenizers` library, or cannot tokenize
                ordinary text without its control tokens.
        """
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise ConfigError(
                f"the tokenizer of {tokenizer.name_or_path!r} must be one of the tokenizers "
                f"library (tokenizer.json), got {type(tokenizer).__name__}"
            )
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._ids = {token.content: i for i, token in added.items() if _is_control(token)}
        self._counted = set(self._ids.values()) - {tokenizer.unk_token_id}
        # Texts stand in for one another under names that nobody who writes a page can know, in
        # private characters, which no added token contains and no normalizer has a rule for.
        used = {character for token in added.values() for character in token.content}
        private = (c for c in map(chr, range(0x10FFFD, 0x100000, -1)) if c not in used)
        reasoning = {self._ids[text] for text in REASONING if text in self._ids}
        self.ids = frozenset(self._counted - reasoning)
        self._edge, *digits = islice(private, 17)
        self._digits = str.maketrans("0123456789abcdef", "".join(digits))
        self._secret = secrets.token_hex(8).translate(self._digits)
        self._texts = [*self._ids, *(text for text in REASONING if text not in self._ids)]
        self._names = {text: self._name(2 * i) for i, text in enumerate(self._texts)}
        self._token_names = {text: self._name(2 * i + 1) for i, text in enumerate(self._texts)}
        self._originals = {name: text for text, name in self._names.items()}
        self._escaped = _any_of(self._originals)
        self._written = _any_of(self._texts)
        self.pattern = _any_of(self._ids)
        # Only unusual tokens need the check: its other tokenizer takes half a second to make.
        if len(added) > len(self._ids) or self._written.search(_SAMPLE):
            self._check_ordinary_text()

    def _check_ordinary_text(self) -> None:
        tokenizer = self._tokenizer
        own = tokenizer.decode(tokenizer(_SAMPLE, add_special_tokens=False)["input_ids"])
        if (read := tokenizer.decode(self._encode_renamed(self.escape(_SAMPLE)))) != own:
            raise ConfigError(
                f"the tokenizer of {tokenizer.name_or_path!r} cannot tokenize ordinary text apart "
                f"from its special tokens: {_first_difference(own, read)}"
            )

    def id_of(self, text: str) -> int:
        """Return the id of the control token with this text."""
        token_id: int = self._ids[text]
        return token_id

    def escape(self, text: str) -> str:
        """Replace what looks like a control token by names that no template looks for.

        Lone surrogates become U+FFFD.
        """
        text = _SURROGATES.sub("\ufffd", text)
        return self._written.sub(lambda found: self._names[found[0]], text)

    def escape_all(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages with their texts escaped."""
        return [{**message, "content": self.escape(message["content"])} for message in messages]

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
        return self._encode_renamed(rendered)

    def _encode_renamed(self, rendered: str) -> list[int]:
        text = self.pattern.sub(lambda found: self._token_names[found[0]], rendered)
        text = self._escaped.sub(lambda found: self._originals[found[0]], text)
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

    def _name(self, number: int) -> str:
        """Return a name: the secret and a number, in private characters."""
        return f"{self._edge}{self._secret}{f'{number:x}'.translate(self._digits)}{self._edge}"


def _is_control(token: Any) -> bool:
    """Tell whether an added token is special, or looks like markup."""
    text = token.content.strip()
    markup = len(text) > 1 and not (text[0].isalnum() or text[-1].isalnum())
    return bool(text) and (token.special or markup)


def _first_difference(expected: str, read: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(expected, read, strict=False)) if a != b), 0)
    return f"expected {expected[at : at + 20]!r}, got {read[at : at + 20]!r}"


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
