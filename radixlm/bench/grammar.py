"""`radixlm bench grammar`: what constraints cost and what jump-forward saves, on a real model.

Masks: a decode step of a full batch, free and inside a free string. Jump-forward: steps and time of the same requests with it
on and off. Compilation: a schema met for the first time, and again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
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
STEPS = 48
FREE_STRING = '[^"]*'
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
NAMES = ("Ann", "Bob", "Chen 陈", "Dora", "Emil", "Fatima", "Gus", "Hana")


def measure(model: str, schemas: Path | None, repeats: int, progress: Callable[[str], None]) -> list[Measure]:
    """All three; compilation only where there is a file of schemas, one JSON object with `data` a line."""
    config = Config(model=model, max_running=BATCH, kv_tokens=16_384, prefix_cache=False, log_level="error")
    with LLM(config=config) as jumping, LLM(config=config.replace(jump_forward=False)) as plain:
        found = [*_masks(plain, repeats, progress), *_jumps(jumping, plain, repeats, progress)]
        if schemas is not None:
            progress(f"compilation of {schemas}")
            found += _compilations(plain, schemas)
    return found


def _masks(llm: LLM, repeats: int, progress: Callable[[str], None]) -> list[Measure]:
    kinds = {"free": None, "in a free string": FREE_STRING}
    samples: dict[str, list[float]] = {name: [] for name in kinds}
    for round_ in range(repeats + 1):
        progress(f"masks, round {round_} of {repeats}")
        for name, regex in kinds.items():
            sampling = SamplingParams(max_tokens=STEPS, temperature=0, ignore_eos=True, regex=regex)
            _, seconds = _run(llm, sampling, BATCH)
            if round_:  # the first one warms up
                samples[name].append(1e3 * seconds / STEPS)
    case = f"step at batch {BATCH}"
    added = [100 * (b / a - 1) for a, b in zip(samples["free"], samples["in a free string"])]
    times = [_of(case, name, "ms", values) for name, values in samples.items()]
    return [*times, _of(case, "added by masks", "%", added)]


def _jumps(jumping: LLM, plain: LLM, repeats: int, progress: Callable[[str], None]) -> list[Measure]:
    found: list[Measure] = []
    cases = {
        "regex of a person": SamplingParams(max_tokens=160, temperature=0, regex=PERSON),
        "10-field schema": SamplingParams(max_tokens=160, temperature=0, json_schema=TEN_FIELDS),
    }
    for case, sampling in cases.items():
        steps: dict[str, list[float]] = {"on": [], "off": []}
        times: dict[str, list[float]] = {"on": [], "off": []}
        for round_ in range(repeats + 1):
            progress(f"{case}, round {round_} of {repeats}")
            for name, llm in (("on", jumping), ("off", plain)):
                count, seconds = _run(llm, sampling, 1)
                if round_:
                    steps[name].append(count)
                    times[name].append(1e3 * seconds)
        fewer = [off / on for on, off in zip(steps["on"], steps["off"])]
        faster = [off / on for on, off in zip(times["on"], times["off"])]
        found += [_of(case, f"steps, jump-forward {name}", "steps", values) for name, values in steps.items()]
        found += [_of(case, f"time, jump-forward {name}", "ms", values) for name, values in times.items()]
        found += [_of(case, "fewer steps", "x", fewer, better=True), _of(case, "faster", "x", faster, better=True)]
    return found


def _run(llm: LLM, sampling: SamplingParams, batch: int) -> tuple[int, float]:
    """(steps, seconds) of as many requests at a time as `batch`, over all names."""
    prompts = [PROMPT.format(NAMES[index % len(NAMES)]) for index in range(max(batch, len(NAMES)))]
    steps, start = llm.stats()["steps"], time.perf_counter()
    if batch > 1:
        llm.generate(prompts, sampling, progress=False)
    else:
        for prompt in prompts:
            llm.generate(prompt, sampling)
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
