import pytest

from envs.prompts import Element, page_messages, simplify_axtree

TREE = """\
RootWebArea 'Task', focused, url='file:///task.html'
\t[9] generic
\t\t[11] generic
\t\t[12] generic
\t\t\tStaticText 'Lorem'
\t\t\t[13] generic
\t\t\t\tStaticText 'don\\'t'
\t\t\tStaticText ''
\t\t[14] textbox '', value='a, b', focused, required
\t\t\tgeneric
\t\t[15] spinbutton 'Day', valuemin=1
\t\t[15] spinbutton 'Month'
\t\t[16] checkbox "it's", focused, checked='false'"""


def test_layout_goes_and_content_stays():
    assert [str(element) for element in simplify_axtree(TREE)] == [
        "text 'Lorem'",
        'text "don\'t" [13]',
        "textbox [14], value='a, b'",
        "spinbutton 'Day' [15]",
        "checkbox \"it's\" [16], checked='false'",
    ]


def test_a_line_that_is_none():
    with pytest.raises(ValueError, match="expected a line of an accessibility tree"):
        simplify_axtree("\t\t")


def test_element_without_id():
    assert str(Element("", "text", "a\nb")) == "text 'a\\nb'"


def test_messages():
    messages = page_messages("Do it.", "button 'OK' [57]", ["noop()"], "no such thing")
    roles = [message["role"] for message in messages]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    last = messages[-1]["content"]
    for part in ("Do it.", "button 'OK' [57]", "noop()", "no such thing"):
        assert part in last
    assert not any("57" in message["content"] for message in messages[:-1])
