"""`radixlm generate PROMPT...`: completes prompts with a model in this process. `-` reads one from stdin."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from radixlm.commands.sampling import add_sampling, sampling_of
from radixlm.engine.llm import LLM
from radixlm.options import MODEL_GROUPS, Parser, add_options, resolve_options


def main(argv: Sequence[str]) -> int:
    """Prints the completions in order: streamed if there is one, else separated by blank lines."""
    parser = Parser("radixlm generate", "Complete prompts and print the text.")
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="text to go on with; - reads it from stdin")
    parser.add_argument("--chat", action="store_true", help="treat each prompt as a user's message")
    add_sampling(parser, max_tokens=128, temperature=1.0)
    add_options(parser, groups=MODEL_GROUPS)
    parsed = parser.read(argv)
    config, sampling = resolve_options(parsed, os.environ), sampling_of(parsed)
    texts = [sys.stdin.read() if prompt == "-" else prompt for prompt in parsed.prompts]
    prompts = [[{"role": "user", "content": text}] for text in texts] if parsed.chat else texts
    with LLM(config=config) as llm:
        if len(prompts) == 1:
            for delta in llm.stream(prompts[0], sampling):
                print(delta.text, end="", flush=True)
            print()
        else:
            print(*(output.text for output in llm.generate(prompts, sampling)), sep="\n\n")
    return 0
