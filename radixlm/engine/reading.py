"""The text side of a model: its tokenizer and chat template, read from the files that `--model` means. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass

from radixlm.config import Config
from radixlm.errors import ModelError
from radixlm.text.template import ChatTemplate, load_template
from radixlm.text.tokenizer import Tokenizer
from radixlm.weights.locate import Located, locate, reading_files

_DEFAULT_CONTEXT = 1 << 17  # bounds rendered prompts of models that do not say how long theirs may be


@dataclass(frozen=True, slots=True)
class Reading:
    """How a model reads and writes text."""

    tokenizer: Tokenizer
    template: ChatTemplate


@reading_files()
def load_reading(config: Config, *, isolated: bool = False) -> Reading:
    """Finds the model's files and reads the text side; `isolated` as in `ChatTemplate`. Raises ModelError."""
    located = locate(config)
    if located.tokenizer is None:
        raise ModelError(f"{located.path} holds no tokenizer.json; name a folder that does with --tokenizer")
    tokenizer = Tokenizer.load(located.tokenizer)
    folder = located.tokenizer.parent if located.tokenizer.is_file() else located.tokenizer
    context = config.context_length or _context_of(located)
    template = load_template(folder, tokenizer.named_tokens, context, config.chat_template, isolated=isolated)
    return Reading(tokenizer, template)


def _context_of(located: Located) -> int:
    length = located.config.get("max_position_embeddings")
    return length if isinstance(length, int) else _DEFAULT_CONTEXT
