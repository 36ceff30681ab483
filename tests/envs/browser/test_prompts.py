import hashlib
import json

from envs.browser.prompts import ACTION, EXAMPLES, FIELD_EXAMPLES


def test_messages():
    messages = ACTION.messages("Do it.", "button 'OK' [57]", ["noop()"], "no such thing")
    roles = [message["role"] for message in messages]
    assert roles == ["system", *["user", "assistant"] * len(EXAMPLES), "user"]
    last = messages[-1]["content"]
    for part in ("Do it.", "button 'OK' [57]", "noop()", "no such thing"):
        assert part in last
    with_field = ACTION.messages("Do it.", "link 'A' [57]\ntextbox [58]", [], "")
    assert len(with_field) - len(messages) == 2 * len(FIELD_EXAMPLES)
    assert "fill('41', 'red shoes')" in [message["content"] for message in with_field]
    assert not any("57" in message["content"] for message in messages[:-1])


def test_the_default_prompts_are_those_of_the_trained_adapters():
    """The hash is of the chats before there were other formats."""
    chats = [
        ACTION.messages("Do it.", "button 'OK' [57]", ["noop()"], "no such thing"),
        ACTION.messages("Find.", "link 'A' [57]\ntextbox [58]", [], "", ("goto", "answer")),
    ]
    text = json.dumps(chats).encode()
    assert hashlib.sha256(text).hexdigest() == (
        "ee4f5ff0e5b3bce40649c7568e6142fd62d060141dafe46823781ef681e864ea"
    )
    assert [
        ACTION.around(chat[-1]["content"], extra)
        for chat, extra in zip(chats, [(), ("goto", "answer")], strict=True)
    ] == chats
