"""From options to a `Core` that is ready to run: the model on its device, the tokenizer that finds stop strings, the grammars."""

from __future__ import annotations

import contextlib
from functools import partial

import msgspec

from radixlm.config import Config
from radixlm.engine.core import Core
from radixlm.engine.grammars import grammar_of, token_vocabulary
from radixlm.engine.reading import Reading, load_reading
from radixlm.grammar.service import Grammars
from radixlm.ops.build import BuildError, build
from radixlm.sched.constrain import Constraints
from radixlm.text.stops import make_stop


def create_core(config: Config, reading: Reading | None = None, *, serving: bool = False) -> Core:
    """Loads the model; `reading` is its text side if that is loaded already. Raises StartError in one line with a remedy.

    Who is `serving` strangers has what compiles grammars from the start, so that nobody's first one waits for it: the C library,
    which frontends and the guard use too, and the process that guards grammars.
    """
    # With torch, for which the `--help` of what may run a model need not wait.
    from radixlm.runner.create import create_runner

    if serving:
        with contextlib.suppress(BuildError):  # whoever needs it says so in the log
            build()
    reading = reading or load_reading(config)
    runner, info = create_runner(config)
    own = reading.tokenizer.eos_id  # often the end of a turn, where the model's config names the end of a text
    if own is not None and own < info.vocab_size and own not in info.eos_token_ids:
        info = msgspec.structs.replace(info, eos_token_ids=(*info.eos_token_ids, own))
    grammars = Grammars(token_vocabulary(reading.tokenizer, info.vocab_size, info.eos_token_ids))
    exact = reading.tokenizer.vocabulary.exact
    if exact:
        grammars.warm(guard=serving)
    constraints = Constraints(
        grammars.vocabulary, partial(grammar_of, grammars, exact), config.jump_forward, grammars.close
    )
    return Core(runner, info, config, partial(make_stop, reading.tokenizer), constraints)
