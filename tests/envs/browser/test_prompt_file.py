"""Answer formats of the user's own: the one in the documentation, and mistakes in one."""

import re
from pathlib import Path

import pytest

from envs.base import TaskError
from envs.browser.actions import Action, InvalidAction
from envs.browser.prompt_file import ANSWERS, find_prompt
from envs.browser.prompts import ACTION
from envs.browser.think_prompt import ThinkPrompt

DOCS = Path(__file__).parents[3] / "docs" / "answers.md"
CLICK = Action("click", ("12",))

START = """
from envs.browser.actions import Action, InvalidAction, parse_action
from envs.browser.prompts import ActionPrompt, Prompt

class Mine(ActionPrompt):
"""


def documented(folder: Path) -> str:
    """Write the class of the documentation to a file; return its address."""
    (program,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (folder / "my_prompt.py").write_text(program)
    return f"{folder}/my_prompt.py:JsonPrompt"


@pytest.fixture
def mine(tmp_path):
    def write(body: str):
        (tmp_path / "mine.py").write_text(START + body)
        return find_prompt("action", f"{tmp_path}/mine.py:Mine")

    return write


def test_ours():
    assert find_prompt() is ACTION
    assert isinstance(find_prompt("think"), ThinkPrompt)
    assert list(ANSWERS) == ["action", "think"]


def test_the_class_of_the_documentation(tmp_path):
    prompt = find_prompt("action", documented(tmp_path))
    text = prompt.write(CLICK, "It is there.")
    assert text == '{"why": "It is there.", "action": "click(\'12\')"}'
    assert (prompt.parse(text), prompt.thought(text)) == (CLICK, "It is there.")
    chat = prompt.messages("Go.", "button 'OK' [12]", ["noop()"], "", ("goto",))
    assert [each["role"] for each in chat] == ["system", "user", "assistant", "user"]
    assert "Answer with a JSON object; its action is one of:\nclick('id')" in chat[0]["content"]
    assert prompt.around(chat[-1]["content"], ("goto",)) == chat
    assert prompt.grammars() == {}
    for wrong in (
        "click('12')",
        "[" * 9000,
        '{"action": 7}',
        "[]",
        '{"action": "a(); b()"}',
        text * 2,
    ):
        with pytest.raises(InvalidAction):
            prompt.parse(wrong)
    assert prompt.why_invalid(text, {"12"}) == ""
    assert prompt.why_invalid(text, {"1"}) == "there is no element '12' on the page"


def test_a_control_token_is_invalid_in_every_format(mine):
    prompt = mine(
        "    def parse(self, text, extra=()): return parse_action(text.rpartition('! ')[2])"
    )
    assert prompt.parse("Yes! click('12')") == CLICK
    with pytest.raises(InvalidAction, match="without control tokens"):
        prompt.parse("\ufffdYes! click('12')")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("mine.py", "expected the file and the class of a prompt, such as my_prompt.py:MyPrompt"),
        ("gone.py:Mine", "gone.py: there is no such file"),
        (
            "mine.py:Other",
            "expected Other to be a subclass of envs.browser.prompts.Prompt; classes",
        ),
    ],
)
def test_a_wrong_address(tmp_path, address, message):
    (tmp_path / "mine.py").write_text(START + "    pass\n")
    with pytest.raises(TaskError, match=re.escape(message)):
        find_prompt("action", f"{tmp_path}/{address}")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    def parse(self, text, extra): 1 / 0", "parse, line 6, raised ZeroDivisionError: div"),
        ("    def parse(self, text): return None", "parse, line ?, raised TypeError: "),
        ("    def parse(self, text, extra): return text", "parse must return an Action, got "),
        ("    def parse(self, text, extra): return Action('tap', ())", "parse returned "),
        ("    def parse(self, text, extra): return Action('click', (12,))", "parse returned "),
        ("    def parse(self, text, extra): return Action('noop')", "parse reads "),
        ("    def write(self, action, thought): return 'I click.'", "parse does not read 'I click"),
        ("    def write(self, action, thought): return 7", "write must return a text, got "),
        ("    def messages(self, *a): return 'hello'", "messages must return a list of messages"),
        ("    def messages(self, *a): return [{'role': 'me', 'content': ''}]", "messages must"),
        ("    def messages(self, *a): return []", "the last message of messages must"),
        ("    def turn(self, *a): return 'Go.'", "the last message of messages must"),
        ("    def turn(self, *a): raise InvalidAction('no')", "messages, line 6, raised Inv"),
        ("    examples = (('Go.', '', (), 'I click.'),)", "parse does not read 'I click.' of ex"),
        ("    def __init__(self, size): pass", "__init__, line ?, raised TypeError"),
        ("    pass\nclass Mine(Prompt): pass", "it must define parse(self, text, extra)"),
        ("    pass\n1 / 0", "raised"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_file_and_class(mine, tmp_path, body, message):
    with pytest.raises(TaskError) as error:
        mine(body)
    line = str(error.value)
    assert "\n" not in line
    assert str(tmp_path / "mine.py") in line
    if "1 / 0" not in body or "def" in body:
        assert "Mine: " in line
        assert message in line


def test_a_mistake_that_comes_later_is_a_task_error(mine):
    prompt = mine(
        "    def parse(self, text, extra):\n"
        "        if 'nan' in text: return float(text)\n"
        "        return parse_action(text, extra)"
    )
    assert prompt.parse("click('12')") == CLICK
    with pytest.raises(TaskError, match=r"mine\.py: Mine: parse must return an Action, got 'nan'"):
        prompt.why_invalid("nan", {"12"})
    with pytest.raises(InvalidAction, match="there is no action tap"):
        prompt.parse("tap()")
