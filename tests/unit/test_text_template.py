"""Chat templates: the same prompt as transformers renders, and a typed error for everything that cannot be rendered."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from radixlm.errors import InvalidRequest, ModelError
from radixlm.text.chat import MAX_MESSAGES
from radixlm.text.template import ChatOptions, ChatTemplate, load_template

from .text_fixtures import real_folder_parameters

NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = """{% for message in messages %}
{% if loop.first and message.role != 'system' %}
{{ '<|im_start|>system\\nYou are helpful<|im_end|>\\n' }}
{% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
HEADERS = """{{- bos_token }}
{%- if strftime_now is defined %}{%- set date = strftime_now("%Y") %}{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}{% continue %}{% endif %}
    {{- '<|head|>' + message['role'] + '<|body|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|head|>assistant<|body|>\\n\\n' }}{%- endif %}"""
TOOLS = """{%- set ns = namespace(last=-1) %}
{%- if tools %}{% for tool in tools %}{{- '\\n' ~ (tool | tojson) }}{% endfor %}{{ tools | tojson(indent=2) }}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
    {%- if message.role == 'assistant' %}
        {%- if message.reasoning_content is defined %}{{ '<think>' + message.reasoning_content + '</think>' }}{% endif %}
        {% generation %}{{- message.content }}{% endgeneration %}
        {%- for call in message.tool_calls or [] %}
            {{- '<call>' ~ call.function.name ~ (call.function.arguments | tojson) ~ '</call>' }}
        {%- endfor %}
    {%- else %}{{- '[' ~ message.role ~ ']' ~ message.content }}{% endif %}
{%- endfor %}
{{- ns.last }}{% if enable_thinking is defined and not enable_thinking %}<no-think>{% endif %}"""
STRICT = """{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{{- '[INST]' + message.content + '[/INST]' }}{% endfor %}"""

PLAIN_CHAT = [{"role": "user", "content": "Is 1 < 2 & \u00fc?"}, {"role": "assistant", "content": " Yes. "}]
LONG_CHAT = [{"role": "system", "content": "Be brief."}, *PLAIN_CHAT, {"role": "user", "content": "Why?\n"}]
TOOL = {"type": "function", "function": {"name": "f", "description": "<\u00e9>", "parameters": {"b": 1, "a": [1.5]}}}
TOOL_CHAT = [
    {"role": "user", "content": "call f"},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "hm",
        "tool_calls": [
            {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": {"x": "\u00e9", "a": 1}}}
        ],
    },
    {"role": "tool", "content": "42", "tool_call_id": "abcdefghi"},
]


def make(source: str, context: int = 4096) -> ChatTemplate:
    return ChatTemplate({"default": source}, NAMED, context)


def theirs(source: str, chat: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, **options: Any) -> str:
    named = options.pop("named", NAMED)
    rendered, _ = render_jinja_template([chat], tools=tools, chat_template=source, **named, **options)
    return rendered[0]


@pytest.mark.parametrize("source", [CHATML, HEADERS, TOOLS])
@pytest.mark.parametrize("chat", [PLAIN_CHAT, LONG_CHAT])
@pytest.mark.parametrize("prompt", [True, False])
def test_a_chat_renders_as_transformers_renders_it(source: str, chat: list[dict[str, Any]], prompt: bool) -> None:
    ours = make(source).render(chat, None, ChatOptions(add_generation_prompt=prompt))
    assert ours == theirs(source, chat, add_generation_prompt=prompt)


def test_tools_calls_reasoning_and_extras_render_as_transformers_renders_them() -> None:
    ours = make(TOOLS).render(TOOL_CHAT, [TOOL], ChatOptions(extra={"enable_thinking": False}))
    assert ours == theirs(TOOLS, TOOL_CHAT, [TOOL], add_generation_prompt=True, enable_thinking=False)
    assert '"parameters": {"b": 1, "a": [1.5]}' in ours and "<\u00e9>" in ours and "<no-think>" in ours


@pytest.mark.parametrize("source", [CHATML, HEADERS, TOOLS])
@pytest.mark.parametrize("last", ["The answer is", "trailing space ", "\n", "ends in [["])
def test_the_final_message_is_left_open_as_transformers_leaves_it(source: str, last: str) -> None:
    chat = [*LONG_CHAT, {"role": "assistant", "content": last}]
    ours = make(source).render(chat, None, ChatOptions(add_generation_prompt=False, continue_final_message=True))
    assert ours == theirs(source, chat, add_generation_prompt=False, continue_final_message=True)


def test_a_message_the_template_leaves_out_cannot_be_continued() -> None:
    options = ChatOptions(add_generation_prompt=False, continue_final_message=True)
    chat = [*PLAIN_CHAT, {"role": "tool", "content": "42"}]
    with pytest.raises(InvalidRequest, match="leaves out the last message"):
        make(HEADERS).render(chat, None, options)
    with pytest.raises(InvalidRequest, match="exclude each other"):
        make(CHATML).render(PLAIN_CHAT, None, ChatOptions(continue_final_message=True))


@pytest.mark.parametrize("folder", real_folder_parameters())
@pytest.mark.parametrize("chat", [LONG_CHAT, TOOL_CHAT], ids=["plain", "tools"])
def test_real_templates_render_as_transformers_renders_them(folder: Path, chat: list[dict[str, Any]]) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = {key: config[key] for key in ("bos_token", "eos_token") if config.get(key)}
    tools = [TOOL] if chat is TOOL_CHAT else None
    ours = load_template(folder, named, 4096).render(chat, tools, ChatOptions())
    assert ours == theirs(config["chat_template"], chat, tools, add_generation_prompt=True, named=named)


def test_contents_in_parts_are_joined_and_null_fields_dropped() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, "c"]
    chat = [{"role": "user", "content": parts, "name": None}]
    assert "user\na\nb\nc<|im_end|>" in make(CHATML).render(chat, None, ChatOptions())


def test_arguments_sent_as_json_text_reach_the_template_as_an_object() -> None:
    def rendered(arguments: Any) -> str:
        calls = [{"function": {"name": "f", "arguments": arguments}}]
        chat = [{"role": "assistant", "content": "", "tool_calls": calls}]
        return make(TOOLS).render(chat, None, ChatOptions())

    assert rendered('{"x": 1}') == rendered({"x": 1})
    assert '"{broken"' in rendered("{broken")


def test_developer_becomes_system_unless_the_template_knows_it() -> None:
    chat = [{"role": "developer", "content": "x"}]
    assert "<|im_start|>system\nx" in make(CHATML).render(chat, None, ChatOptions())
    knows = "{% if messages[0].role == 'developer' %}known{% endif %}"
    assert make(knows).render(chat, None, ChatOptions()) == "known"


def test_the_callers_messages_stay_as_they_were() -> None:
    chat = json.loads(json.dumps(TOOL_CHAT))
    make(TOOLS).render(chat, [TOOL], ChatOptions())
    assert chat == TOOL_CHAT


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "0 messages; a chat has 1 to"),
        ([{"role": "user", "content": "x"}] * (MAX_MESSAGES + 1), "4097 messages"),
        ([{"content": "x"}], r"messages\[0\] has no role"),
        ([{"role": "user", "content": 5}], r"messages\[0\]\.content is neither"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "part of type image_url"),
        ([{"role": "user", "content": [5]}], "part of type unknown"),
        ([{"role": "user", "content": "x", "tool_calls": 5}], r"messages\[0\]\.tool_calls is not a list"),
        (["text"], "messages is not a list of JSON objects"),
        ([{"role": "user", "content": object()}], "messages is not a list of JSON objects"),
        ([{"role": "user"}], "the chat template refuses these messages"),
    ],
)
def test_messages_that_cannot_be_rendered_name_their_fault(messages: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        make(CHATML).render(messages, None, ChatOptions())


def test_the_templates_own_words_reach_the_caller() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        make(STRICT).render([PLAIN_CHAT[0]] * 2, None, ChatOptions())


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ raise_exception.__globals__.x }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ 1 / 0 }}",
        "{{ messages[99].role.x }}",
    ],
)
def test_a_template_that_misbehaves_ends_in_a_typed_error(source: str) -> None:
    with pytest.raises(InvalidRequest, match="the chat template refuses"):
        make(source).render(PLAIN_CHAT, None, ChatOptions())


def test_output_is_counted_while_it_is_made() -> None:
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxxxx{% endfor %}{% endfor %}"
    with pytest.raises(InvalidRequest, match="more than 4096 characters, 4 per token"):
        make(endless, context=1024).render(PLAIN_CHAT, None, ChatOptions())


@pytest.mark.parametrize(("extra", "words"), [({"messages": "x"}, "field of its own"), ({"x": [1]}, "x is a list")])
def test_extras_are_scalars_under_names_of_their_own(extra: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        make(CHATML).render(PLAIN_CHAT, None, ChatOptions(extra=extra))


def test_files_are_found_in_order_of_precedence(tmp_path: Path) -> None:
    def rendered(override: Path | None = None, tools: list[Any] | None = None) -> str:
        return load_template(tmp_path, NAMED, 64, override).render(PLAIN_CHAT, tools, ChatOptions())

    with pytest.raises(InvalidRequest, match=r"no chat template.*--chat-template.*/v1/completions"):
        rendered()
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert (rendered(), rendered(tools=[TOOL])) == ("plain", "tools")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ bos_token }}"}))
    assert rendered() == "<s>"
    (tmp_path / "chat_template.jinja").write_text("own file")
    assert rendered() == "own file"
    (tmp_path / "mine.jinja").write_text("override")
    assert rendered(tmp_path / "mine.jinja") == "override"


def test_broken_template_files_end_the_start(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=re.escape("line 2:")):
        make("fine\n{% if %}")
    with pytest.raises(ModelError, match="cannot read the chat template"):
        load_template(tmp_path, NAMED, 64, tmp_path / "absent.jinja")
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelError, match="holds no readable chat template"):
        load_template(tmp_path, NAMED, 64)
