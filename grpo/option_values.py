"""The kinds of values that options have, and what each of them accepts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, NoReturn
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, StrictFloat

MAX_TEXT = 4096  # characters, as of a path

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?(inf|infinity|nan)", re.I | re.A)


_SPACE_HOSTS = ("huggingface.co", "hf.co")


def short(value: Any, limit: int = 120) -> str:
    """Describe a value in one line of at most `limit` characters."""
    try:
        text = " ".join(repr(value).splitlines())
    except ValueError:  # an integer of thousands of digits
        text = f"a number of {value.bit_length()} bits"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def read_number(value: Any) -> Any:
    """Read a text as a float if it is one, as YAML does not for 1e-5; else return it unchanged.

    Raises:
        ValueError: it is another object, even if it could be converted.
    """
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    if not isinstance(value, str | float | int):
        raise ValueError(f"must be a number, got {short(value)}")
    return value


def check_text(value: str) -> str:
    """Check that a text can be a name or a path.

    Raises:
        ValueError: it has control characters, spaces around it, or is very long.
    """
    if value != value.strip() or any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise ValueError(
            f"must have no spaces around it and no control characters, got {short(value)}"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"must be UTF-8, got {short(value)}") from None
    if len(value) > MAX_TEXT:
        raise ValueError(f"must be at most {MAX_TEXT} characters long, got {len(value)}")
    return value


def require_text(value: str) -> str:
    """Check that a text is not empty.

    Raises:
        ValueError: it is.
    """
    if not value:
        raise ValueError("must not be empty")
    return value


def split_names(value: Any) -> Any:
    """Split a string at its commas, or check the names of a list.

    Returns:
        A tuple, which cannot be changed later; a value of another kind unchanged.

    Raises:
        ValueError: an item of the list is not one name.
    """
    if isinstance(value, str):
        return tuple(check_text(name.strip()) for name in value.split(",") if name.strip())
    if not isinstance(value, list | tuple):
        return value
    for name in value:
        if not isinstance(name, str):
            raise ValueError(f"must be a string, got {short(name)}")
        if not name.strip() or "," in name:
            raise ValueError(f"must be a list of names without commas, got {short(name)} in it")
    return tuple(check_text(name.strip()) for name in value)


def without_secrets(url: str) -> str:
    """Return what can be shown of an address that may have a password or a token in it."""
    before, has_user, after = url.rpartition("@")
    scheme = before[: before.find("://") + 3] if "://" in before else ""
    shown = f"{scheme}***@{after}" if has_user else url
    return re.sub(r"([?#]).*", r"\1***", shown, flags=re.DOTALL)


def check_urls(urls: Sequence[str], schemes: Sequence[str]) -> Sequence[str]:
    """Check that each text is the address of a server.

    Raises:
        ValueError: one is not.
    """
    for url in urls:
        shown = short(without_secrets(url))
        try:
            address = urlsplit(url)
            port = address.port  # raises what is out of range
        except ValueError:
            address, port = urlsplit(""), None
        host = address.hostname
        if address.scheme not in schemes or not host or port == 0 or re.search(r"[\s\\]", url):
            raise ValueError(
                f"must be addresses such as {schemes[0]}://127.0.0.1:8000 ({', '.join(schemes)}), "
                f"got {shown}"
            )
        if "@" in address.netloc:
            raise ValueError(
                "must be addresses without a user and password, which every file of the run would "
                "name: set HF_TOKEN for a private Space, use a tunnel (ssh -L) to another server, "
                f"got {shown}"
            )
        is_page = host.endswith(_SPACE_HOSTS)  # its address is copied from a browser
        if (address.query or address.fragment) and not is_page:
            raise ValueError(f"must be addresses without ?query and #fragment, got {shown}")
    return urls


class FrozenDict(dict[str, Any]):
    """A mapping that cannot be changed."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("the mapping of an option cannot be changed: use Config.replace")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        """Hash the content, so that a `Config` can be hashed."""
        return hash(json.dumps(self, sort_keys=True))

    def __reduce__(self) -> tuple[type[FrozenDict], tuple[dict[str, Any]]]:
        """Copy and pickle as a whole: item by item would be refused."""
        return type(self), (dict(self),)


def read_mapping(value: Any) -> dict[str, Any]:
    """Return a copy of a mapping from names to JSON's values, or of a JSON object in a text.

    Raises:
        ValueError: it is something else.
    """
    expected = 'must be a JSON object such as {"enable_thinking": false}, got ' + short(value)
    try:
        read = json.loads(value) if isinstance(value, str) else value
        if isinstance(read, Mapping) and all(isinstance(key, str) for key in read):
            copy: dict[str, Any] = json.loads(json.dumps(dict(read), allow_nan=False))
            return copy
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(expected) from error
    raise ValueError(expected)


Text = Annotated[str, AfterValidator(check_text)]
RequiredText = Annotated[Text, AfterValidator(require_text)]
Float = Annotated[StrictFloat, BeforeValidator(read_number)]
Names = Annotated[Sequence[str], BeforeValidator(split_names)]
EnvUrls = Annotated[
    Names, AfterValidator(partial(check_urls, schemes=("http", "https", "ws", "wss")))
]
JsonObject = Annotated[Mapping[str, Any], BeforeValidator(read_mapping), AfterValidator(FrozenDict)]
ServerUrls = Annotated[Names, AfterValidator(partial(check_urls, schemes=("http", "https")))]
