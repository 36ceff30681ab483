from envs.browser.prompts import EXAMPLES, FIELD_EXAMPLES, page_messages


def test_messages():
    messages = page_messages("Do it.", "button 'OK' [57]", ["noop()"], "no such thing")
    roles = [message["role"] for message in messages]
    assert roles == ["system", *["user", "assistant"] * len(EXAMPLES), "user"]
    last = messages[-1]["content"]
    for part in ("Do it.", "button 'OK' [57]", "noop()", "no such thing"):
        assert part in last
    with_field = page_messages("Do it.", "link 'A' [57]\ntextbox [58]", [], "")
    assert len(with_field) - len(messages) == 2 * len(FIELD_EXAMPLES)
    assert "fill('41', 'red shoes')" in [message["content"] for message in with_field]
    assert not any("57" in message["content"] for message in messages[:-1])
