"""The model runner against transformers: hand-made plans of any shape give the tokens and log probabilities of a plain model."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from radixlm.config import Config
from radixlm.errors import ConfigError, ModelError
from radixlm.messages import EngineInfo, Logprobs
from radixlm.runner.create import create_runner
from radixlm.runner.model_runner import ModelRunner, ModelStep
from radixlm.sched.plan import ON_DEVICE, Logits, Opened, Plan
from radixlm.sched.sampled import FAILED, Masks, Sampled
from radixlm.types import SamplingParams

VOCAB = 136
GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random llama, its weights large enough for peaked distributions."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        eos_token_id=2,
        initializer_range=0.3,
    )
    path = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def oracle(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture
def create(folder: Path) -> Callable[..., tuple[ModelRunner, EngineInfo]]:
    def make(**options: Any) -> tuple[ModelRunner, EngineInfo]:
        plain: dict[str, Any] = {
            "dtype": "float32",
            "ops": "torch",
            "attention": "reference",
            "kv_tokens": 256,
            "max_running": 4,
        }
        return create_runner(Config(**{"model": str(folder), "threads": 1, "log_level": "error", **plain, **options}))

    return make


def continuation(oracle: Any, prompt: list[int], count: int) -> list[int]:
    tokens = torch.tensor([prompt])
    with torch.inference_mode():
        out = oracle.generate(tokens, max_new_tokens=count, do_sample=False, eos_token_id=-1, pad_token_id=0)
    return out[0, len(prompt) :].tolist()


def log_softmax(oracle: LlamaForCausalLM, tokens: list[int]) -> torch.Tensor:
    """float32 [tokens, vocab]: row i is the distribution of token i + 1."""
    with torch.inference_mode():
        return oracle(torch.tensor([tokens])).logits[0].log_softmax(-1)


# -- a hand-driven engine ---------------------------------------------------------------------------------------------


@dataclass
class Sequence:
    """One request: its tokens so far, and where they are kept. ON_DEVICE stands for tokens not read back yet."""

    prompt: list[int]
    count: int
    sampling: SamplingParams = GREEDY
    slot: int = -1
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)

    @property
    def output(self) -> list[int]:
        return self.tokens[len(self.prompt) :]


@dataclass
class Chunk:
    sequence: Sequence
    start: int
    length: int
    logits: Logits
    samples: bool


class Driver:
    """Makes plans at random: any subset of the sequences, any chunk length, pages in any order, slots and pages reused."""

    def __init__(self, runner: ModelRunner, info: EngineInfo, seed: int) -> None:
        self.runner = runner
        self.size = info.page_size
        self.random = random.Random(seed)
        self.free_pages = list(range(info.num_pages))
        self.random.shuffle(self.free_pages)
        self.free_slots = list(range(info.max_running))
        self.running: list[Sequence] = []
        self.index = 0

    def run(self, waiting: list[Sequence], *, overlap: bool = False) -> None:
        """Computes all sequences to their end."""
        waiting = list(waiting)
        launched: tuple[ModelStep, list[Chunk]] | None = None
        while waiting or self.running or launched:
            opened = tuple(self._open(waiting.pop(0)) for _ in range(len(waiting)) if self._may_open())
            chunks = self._choose()
            step = self.runner.forward(self.plan(chunks, opened)) if chunks else None
            previous, launched = launched, (step, chunks) if step else None
            if previous:
                self._commit(*previous)
            if step:
                step.sample(None)
                self._believe(chunks)
            if launched and not overlap:
                self._commit(*launched)
                launched = None

    def _may_open(self) -> bool:
        return bool(self.free_slots) and len(self.free_pages) * self.size >= 60 and self.random.random() < 0.7

    def _open(self, sequence: Sequence) -> Opened:
        sequence.slot = self.free_slots.pop(self.random.randrange(len(self.free_slots)))
        sequence.tokens = list(sequence.prompt)
        self.running.append(sequence)
        known = np.array(sequence.prompt, dtype=np.int32)
        return Opened(sequence.slot, sequence.sampling, 11, known, len(known), (2,))

    def _choose(self) -> list[Chunk]:
        chunks = []
        for sequence in self.running:
            left = len(sequence.tokens) - sequence.computed
            if not left or len(sequence.output) >= sequence.count or self.random.random() < 0.2:
                continue
            length = left if left == 1 else self.random.randint(1, left)
            samples = length == left
            scored = sequence.sampling.prompt_logprobs is not None and sequence.computed < len(sequence.prompt)
            logits = Logits.ALL if scored else Logits.LAST if samples else Logits.NONE
            chunks.append(Chunk(sequence, sequence.computed, length, logits, samples))
        return chunks

    def plan(self, chunks: list[Chunk], opened: tuple[Opened, ...] = ()) -> Plan:
        cells = [cell for chunk in chunks for cell in self._grow(chunk)]
        slots, indices, pages = (ints([cell[i] for cell in cells]) for i in range(3))
        tokens = [t for c in chunks for t in c.sequence.tokens[c.start : c.start + c.length]]
        self.index += 1
        return Plan(
            self.index,
            ints([c.sequence.slot for c in chunks]),
            ints([c.start for c in chunks]),
            ints([c.length for c in chunks]),
            ints([int(c.logits) for c in chunks]),
            np.array([c.samples for c in chunks], dtype=np.bool_),
            ints(tokens),
            slots,
            indices,
            pages,
            opened,
        )

    def _grow(self, chunk: Chunk) -> Iterator[tuple[int, int, int]]:
        sequence = chunk.sequence
        while len(sequence.pages) * self.size < chunk.start + chunk.length:
            sequence.pages.append(self.free_pages.pop())
            yield sequence.slot, len(sequence.pages) - 1, sequence.pages[-1]

    def _believe(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            chunk.sequence.computed = chunk.start + chunk.length
            if chunk.samples:
                chunk.sequence.tokens.append(ON_DEVICE)

    def _commit(self, step: ModelStep, chunks: list[Chunk]) -> None:
        sampled = step.result()
        for row, message in sampled.logprobs:
            chunks[row].sequence.logprobs.append(message)
        sampling = [chunk for chunk in chunks if chunk.samples]
        for chunk, token in zip(sampling, sampled.tokens.tolist(), strict=True):
            sequence = chunk.sequence
            sequence.tokens[chunk.start + chunk.length] = token
            if len(sequence.output) >= sequence.count and ON_DEVICE not in sequence.tokens:
                self.running.remove(sequence)
                self.free_slots.append(sequence.slot)
                self.free_pages += sequence.pages
                self.random.shuffle(self.free_pages)


def ints(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def prompts(seed: int, count: int) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(3, VOCAB) for _ in range(source.randint(1, 30))] for _ in range(count)]


def run_one(runner: ModelRunner, info: EngineInfo, sequence: Sequence, masks: Masks | None = None) -> Sampled:
    """The prompt in one chunk and the first token."""
    driver = Driver(runner, info, seed=0)
    opened = driver._open(sequence)
    length = len(sequence.prompt)
    logits = Logits.ALL if sequence.sampling.prompt_logprobs is not None else Logits.LAST
    step = runner.forward(driver.plan([Chunk(sequence, 0, length, logits, samples=True)], (opened,)))
    step.sample(masks)
    return step.result()


# -- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize("overlap", [False, True])
def test_mixed_chunks_shuffled_pages_and_reused_slots_give_the_tokens_of_transformers(
    create, oracle, page_size: int, overlap: bool
) -> None:
    runner, info = create(page_size=page_size)
    for seed in (1, 2):
        sequences = [Sequence(prompt, 12) for prompt in prompts(seed, 7)]
        Driver(runner, info, seed).run(sequences, overlap=overlap)
        for sequence in sequences:
            assert sequence.output == continuation(oracle, sequence.prompt, 12)


def test_seeded_random_tokens_do_not_depend_on_chunks_batch_mates_or_overlap(create) -> None:
    runner, info = create()
    sampling = SamplingParams(temperature=1.2, top_p=0.9, frequency_penalty=0.5)
    outputs = []
    for seed, overlap in ((1, False), (2, True), (3, False)):
        sequences = [Sequence(prompt, 10, sampling) for prompt in prompts(5, 6)]
        Driver(runner, info, seed).run(sequences, overlap=overlap)
        outputs.append([sequence.output for sequence in sequences])
    assert outputs[0] == outputs[1] == outputs[2]
    assert len({tuple(output) for output in outputs[0]}) == 6


# -- log probabilities ------------------------------------------------------------------------------------------------


def check_message(message: Logprobs, expected: torch.Tensor, tokens: list[int], count: int) -> None:
    """Every position of a message against the oracle's distributions of the whole sequence."""
    for offset, found in enumerate(message.positions):
        position = message.start + offset
        row = expected[position - 1]
        values, _ = row.topk(count) if count else (row[:0], None)
        assert found.token == tokens[position]
        assert found.logprob == pytest.approx(row[found.token].item(), abs=1e-4)
        assert list(found.top_logprobs) == pytest.approx(values.tolist(), abs=1e-4)
        assert [row[t].item() for t in found.top_tokens] == pytest.approx(values.tolist(), abs=1e-4)


@pytest.mark.parametrize(("count", "start"), [(0, 0), (5, 0), (3, 9)])
def test_logprobs_of_prompt_and_output_are_those_of_transformers(create, oracle, count: int, start: int) -> None:
    """The tokens are random and penalised; the log probabilities are the model's own."""
    runner, info = create(page_size=4)
    sampling = SamplingParams(
        temperature=2.0,
        top_k=20,
        repetition_penalty=1.5,
        logprobs=count,
        prompt_logprobs=count,
        prompt_logprobs_start=start,
    )
    plain = [Sequence(prompt, 6) for prompt in prompts(3, 2)]
    scored = [Sequence(prompt, 6, sampling) for prompt in prompts(4, 4)]
    Driver(runner, info, 3).run([plain[0], *scored, plain[1]])
    assert not plain[0].logprobs and not plain[1].logprobs
    for sequence in scored:
        expected = log_softmax(oracle, sequence.tokens)
        positions = [m.start + i for m in sequence.logprobs for i in range(len(m.positions))]
        assert positions == list(range(min(max(1, start), len(sequence.prompt)), len(sequence.tokens)))
        for message in sequence.logprobs:
            check_message(message, expected, sequence.tokens, count)


def test_prompt_logprobs_are_the_same_in_slices(create, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, info = create()
    sampling = SamplingParams(temperature=0.0, prompt_logprobs=2)
    prompt = prompts(6, 1)[0] * 2
    whole = run_one(runner, info, Sequence(prompt, 1, sampling))
    monkeypatch.setattr("radixlm.runner.prompts.SLICE_ELEMENTS", 3 * VOCAB)
    sliced = run_one(runner, info, Sequence(prompt, 1, sampling))
    [(_, a)], [(_, b)] = whole.logprobs, sliced.logprobs
    assert a.start == b.start == 1 and len(a.positions) == len(b.positions) == len(prompt) - 1
    for one, other in zip(a.positions, b.positions):
        assert one.token == other.token and one.top_tokens == other.top_tokens
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)


# -- rows that go wrong -----------------------------------------------------------------------------------------------


def test_a_row_whose_mask_allows_nothing_fails_and_reports_no_logprobs(create, oracle) -> None:
    runner, info = create()
    words = -(-VOCAB // 32)
    sequence = Sequence([5, 6, 7], 1, SamplingParams(logprobs=1))
    sampled = run_one(runner, info, sequence, Masks(ints([0]), np.zeros((1, words), dtype=np.int32)))
    assert sampled.tokens.tolist() == [FAILED] and sampled.logprobs == ()
    again = run_one(runner, info, Sequence([5, 6, 7], 1))
    assert again.tokens.tolist() == continuation(oracle, [5, 6, 7], 1)


def test_a_plan_without_sampling_rows_yields_no_tokens(create) -> None:
    runner, info = create()
    driver = Driver(runner, info, seed=0)
    sequence = Sequence([5, 6, 7], 1)
    opened = driver._open(sequence)
    step = runner.forward(driver.plan([Chunk(sequence, 0, 2, Logits.NONE, samples=False)], (opened,)))
    step.sample(None)
    assert step.result() == Sampled(step.result().tokens) and not step.result().tokens.size


# -- creation ---------------------------------------------------------------------------------------------------------


def test_the_info_tells_what_was_decided(create) -> None:
    _, info = create(page_size=4, kv_tokens=130, context_length=64)
    assert (info.num_pages, info.page_size, info.context_length, info.max_running) == (32, 4, 64, 4)
    assert (info.dtype, info.device, info.ops, info.attention) == ("float32", "cpu", "torch", "reference")
    assert (info.vocab_size, info.eos_token_ids, info.architecture) == (VOCAB, (2,), "llama")
    assert (
        info.kv_bytes == 2 * 2 * 33 * 4 * 2 * 8 * 4
    )  # keys and values, layers, pages and scratch, page, heads, dim, bytes
    assert info.weight_bytes > 0


def test_the_pool_defaults_to_what_all_running_requests_can_fill(create) -> None:
    _, info = create(kv_tokens=None)
    assert info.num_pages == 4 * 96


def test_the_pool_takes_a_quarter_of_the_free_memory_at_most(create, monkeypatch: pytest.MonkeyPatch) -> None:
    token_bytes = 2 * 2 * 2 * 8 * 4
    monkeypatch.setattr("radixlm.device.cpu.free_bytes", lambda: 4 * 200 * token_bytes)
    _, info = create(kv_tokens=None)
    assert info.num_pages == 200


def test_a_pool_larger_than_the_free_memory_is_refused_in_one_line(create) -> None:
    with pytest.raises(ConfigError, match=r"--kv-tokens 1000000000000 needs .* GiB are free; ask for less") as caught:
        create(kv_tokens=10**12)
    assert "\n" not in str(caught.value) and caught.value.param == "kv_tokens"


def test_a_pool_smaller_than_a_page_is_refused(create) -> None:
    with pytest.raises(ConfigError, match="less than one page of 64"):
        create(kv_tokens=16, page_size=64)


def test_an_unknown_op_table_is_refused(create) -> None:
    with pytest.raises(ConfigError, match="--ops is abacus"):
        create(ops="abacus")


def test_missing_weights_are_a_model_error(create, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ModelError):
        create(model=str(tmp_path))
