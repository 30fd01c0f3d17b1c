"""Comparisons: workers in processes of their own, interleaving, equal work for all, weights in the peers' formats."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench.peers import compare, environment, gguf_export
from bench.peers.registry import OURS, PEERS, Peer
from bench.peers.subject import WorkerSubject
from radixlm.bench import offline
from radixlm.bench.cases import CASES, Decode, Prefill, SecondTurn
from radixlm.bench.engine import Generated
from radixlm.bench.results import BenchError, Sheet
from radixlm.bench.sessions import Draw
from radixlm.errors import ConfigError, StartError

TOY = """
import os
import time

class Adapter:
    versions = {"toy": "1"}

    def __init__(self, model, threads):
        print("noise on stdout", flush=True)
        if model == "absent":
            raise FileNotFoundError(model)

    def generate(self, prompts, lengths):
        if prompts[0][0] == 13:
            raise RuntimeError("unlucky")
        if prompts[0][0] == 99:
            os._exit(5)
        short = 1 if prompts[0][0] == 7 else 0
        return [[sum(p)] * (n - short) for p, n in zip(prompts, lengths)], [time.perf_counter()] * len(prompts)

    def close(self):
        print("closed", flush=True)
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    path = tmp_path / "toy.py"
    path.write_text(TOY)
    return path


def start(toy: Path, model: str = "m") -> WorkerSubject:
    return WorkerSubject("toy", Path(sys.executable), [str(toy), model, "1"], toy.with_suffix(".log"))


def test_a_worker_answers_through_its_own_noise_and_survives_errors(toy: Path) -> None:
    worker = start(toy)
    assert worker.versions == {"toy": "1"}
    with pytest.raises(BenchError, match="RuntimeError: unlucky"):
        worker.generate([[13]], [1])
    result = worker.generate([[1, 2], [4]], [2, 1])
    worker.close()
    assert result.outputs == [[3, 3], [4]] and 0 < result.first_s[0] <= result.total_s
    assert toy.with_suffix(".log").read_text().splitlines() == ["noise on stdout", "closed"]


def test_an_engine_that_stops_early_spoils_the_comparison(toy: Path) -> None:
    worker = start(toy)
    with pytest.raises(BenchError, match=r"produced \[4\] tokens, asked for \[5\]"):
        worker.generate([[7]], [5])
    worker.close()


def test_a_worker_that_dies_is_an_error_and_so_is_everything_after(toy: Path) -> None:
    worker = start(toy)
    for _ in range(2):
        with pytest.raises(BenchError, match=r"exit code 5; its output is in .*toy\.log"):
            worker.generate([[99]], [1])
    worker.close()


def test_a_worker_that_cannot_load_says_why(toy: Path) -> None:
    with pytest.raises(StartError, match="FileNotFoundError: absent"):
        start(toy, "absent")


class Recorder:
    """A subject that notes what it is asked, in a log shared with others."""

    def __init__(self, name: str, log: list[tuple[str, list[list[int]], list[int]]]) -> None:
        self.name = name
        self.versions = {"v": "1"}
        self._log = log

    def generate(self, prompts: Sequence[Sequence[int]], lengths: Sequence[int]) -> Generated:
        self._log.append((self.name, [list(prompt) for prompt in prompts], list(lengths)))
        return Generated([[9] * length for length in lengths], 2.0, [0.5] * len(prompts))

    def close(self) -> None:
        """Nothing."""


def test_every_subject_gets_the_same_prompts_in_turn_and_no_round_repeats_them() -> None:
    log: list[tuple[str, list[list[int]], list[int]]] = []
    subjects = [Recorder(name, log) for name in ("radixlm", "peer")]
    cases = [Decode(3, prompt=(2, 5), output=(1, 4)), Prefill(6), SecondTurn(8, answer=2, added=3)]
    sheet = Sheet()
    offline.take_turns(subjects, cases, 1000, 2, sheet)
    by_subject = {name: [entry[1:] for entry in log if entry[0] == name] for name in ("radixlm", "peer")}
    assert by_subject["radixlm"] == by_subject["peer"]
    prompts = [tuple(prompt) for entry in by_subject["peer"] for prompt in entry[0]]
    assert len(set(prompts)) == len(prompts)
    first_of_case = [log[i][0] for i in range(0, len(log), 2)][:2]
    assert first_of_case == ["radixlm", "radixlm"] and log[10][0] == "peer"  # the order rotates between rounds
    assert all(len(measure.samples) == 2 for measure in sheet.measures)
    assert [measure.subject for measure in sheet.measures[:2]] == ["radixlm", "peer"]


def test_a_second_turn_continues_the_first_and_its_cold_twin_is_as_long() -> None:
    log: list[tuple[str, list[list[int]], list[int]]] = []
    SecondTurn(20, answer=4, added=5).run(Recorder("x", log), Draw("seed", 1000), Sheet())
    (_, [cold], _), (_, [first], [answer]), (_, [second], _) = log
    assert second[: len(first) + answer] == first + [9] * answer
    assert len(cold) == len(second) == 25


def test_lengths_of_a_case_are_unequal_and_always_the_same() -> None:
    lengths = Decode(8).lengths()
    assert lengths == Decode(8).lengths() and len(set(lengths)) > 4
    assert all(32 <= prompt <= 256 and 32 <= output <= 128 for prompt, output in lengths)


def test_cases_and_peers_are_picked_by_name() -> None:
    assert [case.name for case in offline.pick_cases(["decode 1", "prefill"])] == ["decode 1", "prefill 1024"]
    assert offline.pick_cases([]) == list(CASES)
    assert [peer.name for peer in compare.pick_peers(["openvino"])] == ["openvino"]
    with pytest.raises(ConfigError, match="no peer vlm; peers: transformers"):
        compare.pick_peers(["vlm"])


def test_every_registered_adapter_exists_and_defines_an_adapter() -> None:
    for peer in (OURS, *PEERS.values()):
        assert "class Adapter" in peer.script.read_text(), peer.name


def test_a_failed_export_leaves_nothing_behind(tmp_path: Path) -> None:
    def weights(folder: Path, target: Path, python: Path) -> list[str]:
        return ["sh", "-c", f"mkdir {target}; echo broken >&2; exit 3"]

    peer = Peer("p", "ours.py", target="out", weights=weights)
    with pytest.raises(StartError, match="broken"):
        environment.weights_of(peer, tmp_path, tmp_path / "cache", Path(sys.executable))
    assert not (tmp_path / "cache" / "out").exists()


CONFIG = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 32, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"},
}  # fmt: skip


def test_gguf_export_keeps_the_weights_and_reorders_rotated_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    q = torch.randn(64, 64, dtype=torch.bfloat16)
    norm = torch.randn(64, dtype=torch.bfloat16)
    save_file(
        {"model.layers.0.self_attn.q_proj.weight": q, "model.layers.0.input_layernorm.weight": norm},
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for kind, tolerance in (("BF16", 0.0), ("Q8_0", 0.03)):
        gguf_export.export(tmp_path, tmp_path / f"{kind}.gguf", kind)
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / f"{kind}.gguf").tensors}
        stored = tensors["blk.0.attn_q.weight"]
        rows = gguf.quants.dequantize(stored.data, stored.tensor_type)
        # head 0 has 16 rows; rotated halves (0, 8), (1, 9) ... become neighbours
        expected = q.float().numpy()[[0, 8, 1, 9]]
        assert np.abs(rows[:4] - expected).max() <= tolerance
        assert np.array_equal(tensors["blk.0.attn_norm.weight"].data, norm.float().numpy())
