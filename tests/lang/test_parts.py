"""The pieces a program is run with: choice methods, the frame of a conversation, remembered tokens, names."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import radixlm as sgl
from radixlm.errors import InvalidRequest
from radixlm.lang.backends.model import Encoder
from radixlm.lang.chat import TemplateChat
from radixlm.lang.choices import pick
from radixlm.lang.ir import Context
from radixlm.lang.reasoning import separate
from radixlm.lang.sequence import Sequence
from radixlm.text.template import ChatOptions, ChatTemplate
from tests.unit.text_fixtures import SPECIAL, byte_fallback, byte_level

GIVEN = {
    "choices": ["organ", "organism", "antidisestablishmentarianism"],
    "normalized_prompt_logprobs": [-0.1, -0.2, -0.05],
    "input_token_logprobs": [
        [(-0.1, 1, None)],
        [(-0.1, 1, None), (-0.3, 2, None)],
        [(p, i, None) for i, p in enumerate((-0.4, -0.25, -0.1, -0.01, -0.01, -0.01, -0.01, -0.01))],
    ],
    "unconditional_token_logprobs": [
        [(None, 1, None)],
        [(None, 1, None), (-1.4, 2, None)],
        [(p, i, None) for i, p in enumerate((None, -0.25, -0.1, -0.01, -0.01, -0.01, -0.01, -0.01))],
    ],
}


def test_the_three_choice_methods_decide_as_elsewhere():
    assert sgl.token_length_normalized(**GIVEN).decision == "antidisestablishmentarianism"
    greedy = sgl.greedy_token_selection(**GIVEN)
    assert greedy.decision == "organ"
    matrix = greedy.meta_info["greedy_logprob_matrix"]
    assert matrix[1] == pytest.approx([-0.1, -0.3, *[-0.2] * 6])
    free = sgl.unconditional_likelihood_normalized(**GIVEN)
    assert free.decision == "organism"
    assert free.meta_info["normalized_unconditional_prompt_logprobs"] == pytest.approx([-0.1, 0.5, -0.05])
    with pytest.raises(ValueError, match="needs unconditional"):
        sgl.unconditional_likelihood_normalized(**{**GIVEN, "unconditional_token_logprobs": None})


def test_a_warm_choice_is_drawn_by_likelihood():
    drawn = [pick([-0.5, -1.0, -60.0], 1.0, seed) for seed in range(400)]
    assert 0.2 < drawn.count(1) / 400 < 0.55 and not drawn.count(2)


TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|start|>system\nBe nice<|end|>\n{% endif %}"
        "<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
    ),
    "llama": (
        "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n\n{{ m.content | trim }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}"
    ),
    "inst": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}</s>"
        "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text("ab \n", max_size=5)), max_size=6), st.booleans()
)
def test_a_conversation_built_piece_by_piece_is_the_one_rendered_whole(name, turns, with_system):
    template = ChatTemplate({"default": TEMPLATES[name]}, {"bos_token": "<|start|>"}, 4096)
    turns = [("system", "S")] * with_system + [("user", "x"), *turns]
    chat, sequence = TemplateChat(template), Sequence(Context())
    for role, text in turns:
        sequence.open(role, chat)
        sequence.add(text)
        sequence.close(chat)
    whole = template.render(sequence.messages(), None, ChatOptions(add_generation_prompt=False))
    assert sequence.text == whole
    sequence.open("assistant", chat)
    assert sequence.text == template.render(sequence.messages()[:-1], None, ChatOptions())


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([*SPECIAL, "Paris", " the", "\n", "caf\u00e9 ", "two words", "x"]), max_size=9),
    st.booleans(),
)
def test_remembered_tokens_are_those_of_the_tokenizer(pieces, special):
    for tokenizer in (byte_level(), byte_fallback()):
        text, encoder = "".join(pieces), Encoder(tokenizer)
        for _ in range(2):
            assert encoder.encode(text, add_special=special) == tokenizer.encode(text, add_special=special)


def test_reasoning_ends_where_the_model_says():
    assert separate("<think>because</think>\n\nyes") == ("because", "yes")
    assert separate("because</think>yes") == ("because", "yes")
    assert separate("<think>on and on") == ("on and on", "")
    assert separate("just this") == ("", "just this")


def test_names_come_without_weight_and_quickly():
    code = (
        "import time, sys; t = time.perf_counter(); import radixlm as sgl; sgl.function, sgl.gen, sgl.select; "
        "print(time.perf_counter() - t, 'torch' in sys.modules, len(dir(sgl)))"
    )
    start = time.monotonic()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert out[1] == "False" and int(out[2]) > 30 and time.monotonic() - start < 60
    with pytest.raises(AttributeError, match="no name 'nothing'"):
        sgl.__getattr__("nothing")
    for name in sgl.__all__:
        assert getattr(sgl, name) is not None


def test_images_are_refused_by_name():
    with pytest.raises(sgl.ProgramError, match="models that see"):
        sgl.image("cat.png")
    with pytest.raises(InvalidRequest):
        TemplateChat(ChatTemplate({}, {}, 100)).before(("user",))
