"""doctor, plan, completion, key: what they say is what the code does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib

import pytest

from radixlm.cli import COMMANDS, main
from radixlm.commands import completion
from radixlm.config import Config
from radixlm.engine.caller import Caller
from radixlm.options import SPELLINGS
from radixlm.runner.estimate import count_parameters, estimate
from radixlm.serve.keys import load_keys
from radixlm.weights.shapes import SHAPES
from tests.models.families import FAMILIES, make_oracle, open_decoder


def help_of(command: str, capsys) -> str:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("bench", "version")])
def test_completion_knows_the_flags_that_help_shows(command, capsys):
    shown = set(
        re.findall(r"--[a-z][a-z-]+", "\n".join(re.findall(r"^  (-.*?)(?:  |$)", help_of(command, capsys), re.M)))
    )
    assert set(completion.flags(command)) == shown - {"--help"} - {
        other for others in SPELLINGS.values() for other in others
    }


def test_completion_knows_every_command():
    assert set(completion._OWN) == set(COMMANDS)


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_completion_scripts_are_what_the_shell_accepts(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n"], input=script, text=True, check=True)
    if shell == "bash":
        asked = "COMP_WORDS=(radixlm serve --log-format ''); COMP_CWORD=3; _radixlm; echo ${COMPREPLY[@]}"
        run = subprocess.run(["bash", "-c", f"{script}\n{asked}"], capture_output=True, text=True, check=True)
        assert run.stdout == "text json\n"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_counts_the_parameters_that_the_model_has(family, tmp_path):
    reference = make_oracle(family)
    reference.save_pretrained(tmp_path)
    assert count_parameters(open_decoder(tmp_path).config) == sum(
        parameter.numel() for parameter in reference.parameters()
    )


def test_a_folder_goes_before_the_built_in_shape_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    shape = SHAPES["tiny"] | {"max_position_embeddings": 77}
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(shape))
    assert estimate(Config(model="tiny")).context_length == 77


def test_a_plan_fits_its_memory_and_more_memory_serves_more(capsys):
    small, large = (estimate(Config(model="llama-3-8b"), gib << 30) for gib in (24, 80))
    assert small.weight_bytes + small.kv_tokens * small.kv_bytes_per_token < 24 << 30
    assert small.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2
    assert small.requests_of(1024) < large.requests_of(1024)
    assert estimate(Config(model="llama-3-8b"), 8 << 30).kv_tokens == 0
    assert main(["plan", "llama-3-8b", "--memory", "24", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kv_tokens"] == small.kv_tokens
    assert main(["plan", "llama-3-8b", "--memory", "8"]) == 0
    assert "does not fit" in capsys.readouterr().out
    assert "llama-3-8b" in SHAPES


def test_doctor_says_what_will_be_used_and_why_not_the_rest(capsys):
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert re.search(r"(native|torch) will be used", facts["cpu ops"])
    assert "will be used" in facts["cpu attention"]
    assert main(["doctor", "--ops", "triton"]) == 1
    assert "nothing works" in capsys.readouterr().out


def test_a_new_key_opens_what_its_entry_says(tmp_path, capsys):
    assert main(["key", "alice b", "--scope", "metrics", "--max-requests", "3"]) == 0
    text = capsys.readouterr().out
    assert len(tomllib.loads(text)) == 1
    assert main(["key", "alice", "--scope", "metrics", "--max-requests", "3"]) == 0
    text = capsys.readouterr().out
    (tmp_path / "keys.toml").write_text(text)
    key = text.splitlines()[0].rpartition(" ")[2]
    keys = load_keys(Config(api_keys=str(tmp_path / "keys.toml")))
    assert keys.owner(key.encode()) == Caller("alice", frozenset({"metrics"}), max_requests=3)
    assert keys.owner(key[:-1].encode()) is None
    assert key not in repr(keys._known)
