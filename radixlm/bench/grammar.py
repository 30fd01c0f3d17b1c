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
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from radixlm.bench.results import OURS, Measure
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


def measure(model: str, schemas: Path | None, repeats: int, progress: Callable[[str], None]) -> list[Measure]:
    """All of it; compilation only where there is a file of schemas, one JSON object with `data` a line."""
    config = Config(model=model, max_running=BATCH + 1, kv_tokens=16_384, prefix_cache=False, log_level="error")
    found: list[Measure] = []

    def add(measures: list[Measure]) -> None:
        for each in measures:
            progress(f"{each.case}: {each.metric} {each.value:.4g} {each.unit}")
        found.extend(measures)

    with LLM(config=config) as jumping, LLM(config=config.replace(jump_forward=False)) as plain:
        add(_masks(plain, repeats))
        add(_hostile(plain, repeats))
        for case, sampling in JUMPS.items():
            add(_jump(case, sampling, jumping, plain, repeats))
        if schemas is not None:
            add(_compilations(plain, schemas))
    return found


def _masks(llm: LLM, repeats: int) -> list[Measure]:
    samples: dict[str, list[float]] = {name: [] for name in ROWS}
    for round_ in range(repeats + 1):
        for name, regex in ROWS.items():
            sampling = SamplingParams(max_tokens=STEPS, temperature=0, ignore_eos=True, regex=regex)
            times = _step_times(llm, sampling)
            if round_:  # the first one warms up
                samples[name].append(statistics.median(times))
    case = f"step at batch {BATCH}"
    found = [_of(case, name, "ms", values) for name, values in samples.items()]
    for name in list(ROWS)[1:]:
        added = [100 * (b / a - 1) for a, b in zip(samples["free"], samples[name])]
        found.append(_of(case, f"added {name}", "%", added))
    return found


def _hostile(llm: LLM, repeats: int) -> list[Measure]:
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
    case = f"step at batch {BATCH} while hostile grammars compile"
    found = [_of(case, name, "ms", values) for name, values in samples.items()]
    for name, values in samples.items():
        slow = 100 * sum(value > 2 * median for value in values) / len(values)
        found.append(_of(case, f"over twice the median, {name}", "%", [slow]))
    times = [statistics.median(samples["meanwhile"]) / median]
    return [*found, _of(case, "median against alone", "x", times)]


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


def _jump(case: str, sampling: SamplingParams, jumping: LLM, plain: LLM, repeats: int) -> list[Measure]:
    steps: dict[str, list[float]] = {"on": [], "off": []}
    times: dict[str, list[float]] = {"on": [], "off": []}
    for round_ in range(repeats + 1):
        for name, llm in (("on", jumping), ("off", plain)):
            count, seconds = _run(llm, sampling)
            if round_:
                steps[name].append(count)
                times[name].append(1e3 * seconds)
    fewer = [off / on for on, off in zip(steps["on"], steps["off"])]
    faster = [off / on for on, off in zip(times["on"], times["off"])]
    found = [_of(case, f"steps, jump-forward {name}", "steps", values) for name, values in steps.items()]
    found += [_of(case, f"time, jump-forward {name}", "ms", values) for name, values in times.items()]
    return [*found, _of(case, "fewer steps", "x", fewer, better=True), _of(case, "faster", "x", faster, better=True)]


def _run(llm: LLM, sampling: SamplingParams) -> tuple[int, float]:
    """(steps, seconds) of a few requests, one after the other."""
    steps, start = llm.stats()["steps"], time.perf_counter()
    for name in NAMES[:4]:
        llm.generate(PROMPT.format(name), sampling)
    return llm.stats()["steps"] - steps, time.perf_counter() - start


def _compilations(llm: LLM, schemas: Path) -> list[Measure]:
    info, tokenizer = llm.info, llm.tokenizer
    grammars = Grammars(token_vocabulary(tokenizer, info.vocab_size, info.eos_token_ids), max_bytes=1 << 30)
    grammars.get(Constraint("regex", "a+")).result()
    first: list[float] = []
    again: list[float] = []
    refused = 0
    for line in schemas.read_text().splitlines():
        constraint = Constraint("json_schema", json.dumps(json.loads(line)["data"]))
        start = time.perf_counter()
        try:
            grammars.get(constraint).result()
        except InvalidRequest:
            refused += 1
            continue
        first.append(1e3 * (time.perf_counter() - start))
        start = time.perf_counter()
        grammars.get(constraint).result()
        again.append(1e3 * (time.perf_counter() - start))
    grammars.close()
    case = f"{len(first)} schemas, {refused} refused"
    slow = sorted(first)[int(len(first) * 0.99) :]
    return [
        _of(case, "compilation p50", "ms", first),
        _of(case, "compilation p99", "ms", slow),
        _of(case, "second use p50", "ms", again),
    ]


def _of(case: str, metric: str, unit: str, samples: Sequence[float], *, better: bool = False) -> Measure:
    return Measure(case=case, metric=metric, unit=unit, subject=OURS, samples=list(samples), higher_is_better=better)
