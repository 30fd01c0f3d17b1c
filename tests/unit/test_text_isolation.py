"""Hostile chat templates: none reaches out, none costs more than its time and memory, and the next chat is rendered."""

from __future__ import annotations

import os
import time
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


def own_processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "radixlm.text.isolation" in child.cmdline()]


def test_a_process_that_is_killed_while_idle_costs_nothing():
    before = {child.pid for child in own_processes()}
    template = ChatTemplate({"default": FINE}, {}, 1024, isolated=True)
    (child,) = (child for child in own_processes() if child.pid not in before)
    for _ in range(3):
        assert template.render(CHAT, None, ChatOptions()) == "hello"
    child.kill()
    os.waitid(
        os.P_PID, child.pid, os.WEXITED | os.WNOWAIT
    )  # over with all its threads, which comes after it shows as a zombie
    assert [template.render(CHAT, None, ChatOptions()) for _ in range(4)] == ["hello"] * 4


def test_a_process_that_is_killed_under_way_costs_its_request():
    before = {child.pid for child in own_processes()}
    slow = "{% if messages | length > 1 %}" + COSTLY[0] + "{% endif %}hello"
    template = ChatTemplate({"default": slow}, {}, 1024, isolated=True)
    (child,) = (child for child in own_processes() if child.pid not in before)
    with ThreadPoolExecutor(1) as threads:
        lost = threads.submit(template.render, CHAT * 2, None, ChatOptions())
        idle = child.cpu_times().user
        while child.cpu_times().user < idle + 0.05 and not lost.done():
            time.sleep(0.01)
        child.kill()
        with pytest.raises(NotReady, match="try again"):
            lost.result(10)
    assert template.render(CHAT, None, ChatOptions()) == "hello"
