"""Hostile chat templates: none reaches out, none costs more than its time and memory, and the next chat is rendered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from radixlm.errors import InvalidRequest, ModelError, NotReady
from radixlm.text import isolation
from radixlm.text.template import ChatOptions, ChatTemplate

CHAT = [{"role": "user", "content": "hello"}]
FINE = "{% for m in messages %}{{ m.content }}{% endfor %}"

# They end with the sandbox's refusal or with something harmless, and never with an attribute of the interpreter.
ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__['os'].system('id') }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ self._TemplateReference__context }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__code__ }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "{{ '%s' | format(messages.__class__.__base__) }}",
    "{{ (messages | map(attribute='__class__') | list)[0].__bases__ }}",
    "{{ messages | attr('__class__') | attr('__base__') }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('id') }}",
    "{% extends '/etc/passwd' %}",
    "{{ namespace.__init__.__globals__['__builtins__'] }}",
    "{{ range.__self__ }}",
    "{{ get_flashed_messages.__globals__ }}",
]
COSTLY = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "{{ '%2000000000d' % messages | length }}",
    "{{ messages[0].content | center(2000000000) }}",
    "{{ messages[0].content.center(2000000000) }}",
    "{{ messages[0].content.ljust(4000000000) | length }}",
    "{{ messages[0].content * 1000000000 }}",
    "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s=9) %}{% for i in range(40) %}{% set ns.s = ns.s * ns.s %}{% endfor %}{{ ns.s }}",
    "{{ 9 ** (9 ** (7 + messages | length)) }}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "{{ messages[0].content | indent(4000000000) }}",
    "{{ lipsum(n=1000000) }}",
]


def render(source: str) -> str:
    return ChatTemplate({"default": source}, {}, 1024, isolated=True).render(CHAT, None, ChatOptions())


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(isolation, "RENDER_S", 0.25)


def test_it_renders_what_the_process_itself_renders():
    plain = ChatTemplate({"default": FINE}, {}, 1024)
    isolated = ChatTemplate({"default": FINE}, {}, 1024, isolated=True)
    chats = [[{"role": "user", "content": f"{i} \u00fc \U0001f600"}] for i in range(20)]
    with ThreadPoolExecutor(8) as threads:
        texts = list(threads.map(lambda chat: isolated.render(chat, None, ChatOptions()), chats))
    assert texts == [plain.render(chat, None, ChatOptions()) for chat in chats]


@pytest.mark.parametrize("source", ESCAPES)
def test_no_template_reaches_out_of_the_sandbox(source):
    try:
        text = ChatTemplate({"default": source}, {}, 1024).render(CHAT, None, ChatOptions())
    except (InvalidRequest, ModelError):
        return
    for word in ("uid=", "root:", "<class", "<function", "builtin", "module"):
        assert word not in text, text


@pytest.mark.parametrize("source", COSTLY)
def test_no_template_costs_more_than_its_time_and_memory(hurried, source):
    template = ChatTemplate(
        {"default": "{% if messages | length > 1 %}" + source + "{% else %}fine{% endif %}"}, {}, 1024, isolated=True
    )
    with pytest.raises(InvalidRequest) as caught:
        template.render(CHAT * 2, None, ChatOptions())
    assert caught.value.param == "messages"
    assert template.render(CHAT, None, ChatOptions()) == "fine", "the next chat is rendered"


def test_a_template_that_is_costly_to_compile_ends_the_start(monkeypatch):
    monkeypatch.setattr(isolation, "START_S", 2.0)
    with pytest.raises(ModelError, match="not compiled after 2 s"):
        render("{{ 9 ** (9 ** 9) }}")


def test_a_template_that_does_not_compile_is_named_at_start():
    with pytest.raises(ModelError, match="line 1"):
        render("{% if %}")


def test_a_killed_process_costs_one_request():
    template = ChatTemplate({"default": FINE}, {}, 1024, isolated=True)
    for child in psutil.Process().children():
        if "radixlm.text.isolation" in child.cmdline():
            child.kill()
    outcomes: list[object] = []
    for _ in range(4):
        try:
            outcomes.append(template.render(CHAT, None, ChatOptions()))
        except NotReady as error:
            outcomes.append(error.status)
    assert sorted(map(str, outcomes)) == ["503", "hello", "hello", "hello"]
