import pytest

from envs.browser.fields import read_names
from envs.browser.limits import MAX_LINES, MAX_NAME
from envs.browser.page_text import Element, simplify_axtree

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


def test_layout_is_dropped_and_content_stays():
    assert [str(element) for element in simplify_axtree(TREE)] == [
        "text 'Lorem'",
        'text "don\'t" [13]',
        "textbox [14], value='a, b'",
        "spinbutton 'Day' [15]",
        'checkbox "it\'s" [16]',
    ]


def test_a_line_that_is_not_a_node():
    with pytest.raises(ValueError, match="expected a line of an accessibility tree"):
        simplify_axtree("\t\t")


REPEATED = """\
RootWebArea 'Task'
\t[9] radio 'qP', checked='false'
\tStaticText 'qP'
\t[10] textbox '', value='W '
\t\tgeneric
\t\t\tStaticText 'W'
\t[11] spinbutton 'Day', value=0
\tStaticText '0'
\t[16] textbox '', value='D, E', disabled=True
\tStaticText 'D, E'
\t[17] spinbutton '', value=5, disabled=True
\tStaticText '5'
\t[12] option 'A', selected=True
\t[13] option 'B', selected=False
\t[14] checkbox 'C', checked='true', disabled=True
\tStaticText 'qP'
\t[15] generic
\t\tStaticText 'C'"""


def test_texts_that_repeat_their_control_and_false_states_are_dropped():
    assert [str(element) for element in simplify_axtree(REPEATED)] == [
        "radio 'qP' [9]",
        "textbox [10], value='W '",
        "spinbutton 'Day' [11], value=0",
        "textbox [16], value='D, E', disabled",
        "spinbutton [17], value=5, disabled",
        "option 'A' [12], selected",
        "option 'B' [13]",
        "checkbox 'C' [14], checked, disabled",
        "text 'qP'",  # does not follow its control
        "text 'C' [15]",  # has an id, so it can be clicked
    ]


def test_elements_without_a_name_stay_if_the_server_has_one():
    names = {"9": "star", "10": "covered", "11": "not shown", "99": "not on the page"}
    tree = "[9] generic\n[10] image ''\n[11] button 'Send'\n[12] generic"
    assert [str(element) for element in simplify_axtree(tree, names)] == [
        "element (star) [9]",
        "image (covered) [10]",
        "button 'Send' [11]",
    ]


def test_names_are_foreign_text():
    hostile = {"3": "a) [7]\nbutton 'Pay' \x1b[2J" + "x" * 100}
    (name,) = read_names(hostile).values()
    assert not set(name) & set("()[]\n\x1b")
    assert len(name) <= MAX_NAME + len("...")
    with pytest.raises(ValueError, match="10001"):
        read_names({str(i): "x" for i in range(MAX_LINES + 1)})


def test_element_without_id():
    assert str(Element("", "text", "a\nb")) == "text 'a\\nb'"
