"""Modelfiles: templates of Ollama where they are exactly the model's chat layout."""

import re
from dataclasses import replace

import pytest

from grpo.deploy.export_modelfile import find_pieces, modelfile
from grpo.model.chat import ChatTemplate
from tests.support.templates import TEMPLATES, with_template

CHATML = '''FROM ./model.gguf
TEMPLATE """{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system
{{ .Content }}<|im_end|>
{{ end }}{{ if eq .Role "user" }}<|im_start|>user
{{ .Content }}<|im_end|>
{{ end }}{{ if eq .Role "assistant" }}<|im_start|>assistant
{{ .Content }}<|im_end|>
{{ end }}{{ end }}<|im_start|>assistant
"""
PARAMETER temperature 0
PARAMETER num_ctx 2048
PARAMETER num_predict 16
PARAMETER stop "<|im_end|>"
'''


def make(chat, **options):
    given = {"base": "./model.gguf", "stop": ["<|im_end|>"], "context": 2048, "max_new_tokens": 16}
    return modelfile(chat, **given | options)


def render_go(template, messages):
    """Render the part of Go's templates that is used here."""
    first = f'eq (index .Messages 0).Role "{messages[0]["role"]}"'

    def choose(found):
        return found[2] if found[1] == first else found[3]

    loop = re.compile(r"\{\{ range \.Messages \}\}(.*)\{\{ end \}\}", re.DOTALL)
    branch = re.compile(r"\{\{ if (.*?) \}\}(.*?)\{\{ else \}\}(.*?)\{\{ end \}\}", re.DOTALL)
    case = re.compile(r'\{\{ if eq \.Role "(.*?)" \}\}(.*?)\{\{ end \}\}', re.DOTALL)
    start, inside, end = loop.split(template)
    start, cases = branch.sub(choose, start), dict(case.findall(inside))
    turns = (cases[m["role"]].replace("{{ .Content }}", m["content"]) for m in messages)
    return start + "".join(turns) + end


def test_chatml(byte_level):
    assert make(ChatTemplate(byte_level)) == CHATML


def test_an_adapter(byte_level):
    text = make(ChatTemplate(byte_level), base="./base.gguf", adapter="./adapter.gguf")
    assert text.startswith("FROM ./base.gguf\nADAPTER ./adapter.gguf\nTEMPLATE ")


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", True),
        ("Qwen/Qwen3-0.6B", True),
        ("LiquidAI/LFM2-350M", True),
        ("HuggingFaceH4/zephyr-7b-beta", True),
        ("meta-llama/Llama-3.2-1B-Instruct", False),  # has the date in it
        ("ibm-granite/granite-3.1-2b-instruct", False),  # where the system says nothing
        ("google/gemma-2-2b-it", False),  # has no system message
        ("HuggingFaceTB/SmolVLM-256M-Instruct", False),  # takes lists of parts
    ],
)
def test_templates_of_models(name, exact, byte_level):
    chat = ChatTemplate(with_template(byte_level, TEMPLATES[name]))
    pieces = find_pieces(chat)
    assert (pieces is not None) == exact
    text = make(chat)
    assert ("\nTEMPLATE " in text) == exact
    assert ("\n# no TEMPLATE" in text) != exact
    if pieces is None:
        return
    go = text.partition('TEMPLATE """')[2].partition('"""')[0]
    texts = ["Be brief.", "Go.", "click('1')", "On."]
    roles = ["system", "user", "assistant", "user"]
    messages = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]
    for chosen in (messages, messages[:2], messages[1:2]):
        own = chat.tokenizer.apply_chat_template(chosen, tokenize=False, add_generation_prompt=True)
        assert render_go(go, chosen) == own


@pytest.mark.parametrize("mark", ["{{", '"""'])
def test_marks_of_go_and_of_modelfiles(mark, byte_level):
    template = TEMPLATES["HuggingFaceH4/zephyr-7b-beta"]
    odd = replace(template, source="{{ '" + mark + "' }}" + template.source)
    assert find_pieces(ChatTemplate(with_template(byte_level, odd))) is None
