"""A tokenizer for random weights without one: a token per byte, so that text goes in and out of any vocabulary."""

from __future__ import annotations

from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel

from radixlm.weights.gguf_tokenizer import CONTROL, write_tokenizer

END = "<|end|>"  # token 256
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def write_byte_tokenizer(folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    tokens = [*sorted(ByteLevel.alphabet()), END]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.token_type": [1] * 256 + [CONTROL],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.eos_token_id": 256,
        "tokenizer.chat_template": TEMPLATE,
    }
    write_tokenizer(metadata, folder)
