"""`radixlm bench grammar`: what constraints cost and what jump-forward saves, on a real model.

Masks: a decode step of a full batch, free, inside a free string and inside a pattern; and while hostile constraints are compiled.
Jump-forward: steps and time of the same requests with it on and off. Compilation: a schema met for the first time, and again.
"""

from __future__ import annotations

import itertools
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import truediv
from pathlib import Path

from radixlm.bench.kind import option
from radixlm.bench.results import Sheet, percentile
from radixlm.config import Config
from radixlm.engine.grammars import token_vocabulary
from radixlm.engine.llm import LLM
from radixlm.errors import InvalidRequest
from radixlm.grammar.api import Constraint
from radixlm.grammar.service import Grammars
from radixlm.types import SamplingParams

BATCH = 32
STEPS = 32
WARM_STEPS = 3  # of a stream, while the others of its batch come in
ROWS = {"free": None, "in a free string": '[^"]*', "in a pattern": r"(?:[A-Z][a-z]{1,9} \d{1,3}, )*"}
HOSTILE = ("(a|aa|aaa|b{2,900}){900}c", "((a{1,500}){1,500}){1,500}b", "(?:(?:x|y){1,90}z?){1,90}")
PERSON = r'\{\s*"name"\s*:\s*"[^"]*"\s*,\s*"age"\s*:\s*\d+\s*\}'
_FIELDS = ("first_name", "last_name", "age", "is_member", "email_verified", "city_of_birth", "occupation")
_PROPERTIES: dict[str, object] = {
    **{name: {"type": "string", "maxLength": 12} for name in _FIELDS},
    "number_of_children": {"type": "integer", "minimum": 0, "maximum": 9},
    "preferred_language": {"enum": ["english", "chinese", "spanish"]},
    "has_driving_licence": {"type": "boolean"},
}
TEN_FIELDS = json.dumps(
    {"type": "object", "properties": _PROPERTIES, "required": list(_PROPERTIES), "additionalProperties": False}
)
PROMPT = "Here is a record of a person in JSON, with the name {} and the age:\n"
JUMPS = {
    "regex of a person": SamplingParams(max_tokens=160, temperature=0, regex=PERSON),
    "10-field schema": SamplingParams(max_tokens=160, temperature=0, json_schema=TEN_FIELDS),
}
NAMES = ("Ann", "Bob", "Chen 陈", "Dora", "Emil", "Fatima", "Gus", "Hana")


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """Constraints on a real model."""

    model: str = option("smollm2-135m", "model name or folder")
    schemas: Path | None = option(None, "JSON lines with a schema as `data`, to compile", Path)
    repeats: int = option(3, "rounds")

    def measure(self, sheet: Sheet) -> None:
        """All of it; compilation only where there is a file of schemas."""
        config = Config(
            model=self.model, max_running=BATCH + 1, kv_tokens=16_384, prefix_cache=False, log_level="error"
        )
        with LLM(config=config) as jumping, LLM(config=config.replace(jump_forward=False)) as plain:
            _masks(plain, self.repeats, sheet)
            _hostile(plain, self.repeats, sheet)
            for case, sampling in JUMPS.items():
                _jump(partial(sheet.add, case), sampling, {"on": jumping, "off": plain}, self.repeats)
            if self.schemas is not None:
                _compilations(plain, self.schemas, sheet)


def _masks(llm: LLM, repeats: int, sheet: Sheet) -> None:
    samples: dict[str, list[float]] = {name: [] for name in ROWS}
    for round_ in range(repeats + 1):
        for name, regex in ROWS.items():
            sampling = SamplingParams(max_tokens=STEPS, temperature=0, ignore_eos=True, regex=regex)
            times = _step_times(llm, sampling)
            if round_:  # the first one warms up
                samples[name].append(statistics.median(times))
    add = partial(sheet.add, f"step at batch {BATCH}")
    for name, values in samples.items():
        add(name, "ms", *values)
    for name in list(ROWS)[1:]:
        add(f"added {name}", "%", *(100 * (b / a - 1) for a, b in zip(samples["free"], samples[name])))


def _hostile(llm: LLM, repeats: int, sheet: Sheet) -> None:
    """Steps of free rows alone, and while one hostile constraint after the other is compiled."""
    sampling = SamplingParams(max_tokens=STEPS, temperature=0, ignore_eos=True)
    samples: dict[str, list[float]] = {"alone": [], "meanwhile": []}
    numbers = itertools.count()
    for _ in range(repeats):
        samples["alone"] += _step_times(llm, sampling)
        over = threading.Event()
        thread = threading.Thread(target=_attack, args=(llm, numbers, over))
        thread.start()
        samples["meanwhile"] += _step_times(llm, sampling)
        over.set()
        thread.join()
    median = statistics.median(samples["alone"])
    add = partial(sheet.add, f"step at batch {BATCH} while hostile grammars compile")
    for name, values in samples.items():
        slow = sum(value > 2 * median for value in values) / len(values)
        add(name, "ms", *values)
        add(f"over twice the median, {name}", "%", 100 * slow)
    add("median against alone", "x", statistics.median(samples["meanwhile"]) / median)


def _attack(llm: LLM, numbers: Iterator[int], over: threading.Event) -> None:
    while not over.is_set():
        number = next(numbers)
        regex = HOSTILE[number % len(HOSTILE)] + str(number)  # never the same twice: failures are remembered
        with suppress(InvalidRequest):
            llm.generate("x", SamplingParams(max_tokens=1, regex=regex))


def _step_times(llm: LLM, sampling: SamplingParams) -> list[float]:
    """Milliseconds between the tokens of one stream of a full batch."""
    prompts = [f"{NAMES[index % len(NAMES)]} said" for index in range(BATCH)]
    others = threading.Thread(target=llm.generate, args=(prompts[1:], sampling), kwargs={"progress": False})
    others.start()
    times = [time.perf_counter() for delta in llm.stream(prompts[0], sampling) if delta.tokens]
    others.join()
    return [1e3 * (after - before) for before, after in itertools.pairwise(times[WARM_STEPS:])]


def _jump(add: Callable[..., None], sampling: SamplingParams, llms: dict[str, LLM], repeats: int) -> None:
    runs = [{name: _run(llm, sampling) for name, llm in llms.items()} for _ in range(repeats + 1)][1:]
    steps = {name: [run[name][0] for run in runs] for name in llms}
    times = {name: [1e3 * run[name][1] for run in runs] for name in llms}
    for name in llms:
        add(f"steps, jump-forward {name}", "steps", *steps[name])
        add(f"time, jump-forward {name}", "ms", *times[name])
    add("fewer steps", "x", *map(truediv, steps["off"], steps["on"]), higher=True)
    add("faster", "x", *map(truediv, times["off"], times["on"]), higher=True)


def _run(llm: LLM, sampling: SamplingParams) -> tuple[int, float]:
    """(steps, seconds) of a few requests, one after the other."""
    steps, start = llm.stats()["steps"], time.perf_counter()
    for name in NAMES[:4]:
        llm.generate(PROMPT.format(name), sampling)
    return llm.stats()["steps"] - steps, time.perf_counter() - start


def _compilations(llm: LLM, schemas: Path, sheet: Sheet) -> None:
    info, tokenizer = llm.info, llm.tokenizer
    grammars = Grammars(token_vocabulary(tokenizer, info.vocab_size, info.eos_token_ids), max_bytes=1 << 30)
    grammars.get(Constraint("regex", "a+")).result()
    times: dict[str, list[float]] = {"compilation": [], "second use": []}
    refused = 0
    for line in schemas.read_text().splitlines():
        constraint = Constraint("json_schema", json.dumps(json.loads(line)["data"]))
        try:
            for found in times.values():
                start = time.perf_counter()
                grammars.get(constraint).result()
                found.append(1e3 * (time.perf_counter() - start))
        except InvalidRequest:
            refused += 1
    grammars.close()
    case = f"{len(times['second use'])} schemas, {refused} refused"
    sheet.add(case, "compilation p50", "ms", *times["compilation"])
    sheet.add(case, "compilation p99", "ms", percentile(times["compilation"], 0.99))
    sheet.add(case, "second use p50", "ms", *times["second use"])
