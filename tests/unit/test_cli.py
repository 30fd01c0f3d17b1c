"""The command line: options from four places, one line per error, and nothing heavy imported before it is needed."""

import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import pytest

from radixlm.cli import COMMANDS, main
from radixlm.commands.chat import Conversation
from radixlm.commands.panel import curl_line, facts
from radixlm.config import Config, choices, flag
from radixlm.engine.output import Delta, Usage
from radixlm.errors import ConfigError, NotReady
from radixlm.messages import EngineInfo
from radixlm.options import Parser, add_options, from_mapping, resolve_options
from radixlm.types import SamplingParams
from radixlm.version import __version__


def parse(*argv: str, environment: dict[str, str] | None = None) -> Config:
    parser = Parser("test", "")
    add_options(parser)
    return resolve_options(parser.read(argv), environment or {})


def imported_by(code: str) -> set[str]:
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint('modules:', *sys.modules)"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return set(run.stdout.rsplit("modules:", 1)[1].split())


@pytest.mark.parametrize("code", ["import radixlm", "from radixlm.cli import main\nmain(['--help'])"])
def test_importing_the_package_and_printing_help_load_nothing_heavy(code):
    heavy = {"torch", "numpy", "msgspec", "zmq", "rich", "asyncio", "starlette", "tokenizers"}
    assert not heavy & imported_by(code)


@pytest.mark.parametrize("command", ["serve", "generate", "chat", "plan"])
def test_help_of_commands_loads_no_torch(command):
    code = f"from radixlm.cli import main\ntry:\n    main(['{command}', '--help'])\nexcept SystemExit:\n    pass"
    assert "torch" not in imported_by(code)


def test_public_names_load_when_used():
    code = "import radixlm\nradixlm.SamplingParams\nassert 'LLM' in dir(radixlm)"
    assert "torch" not in imported_by(code)


def test_every_command_exists():
    for name, command in COMMANDS.items():
        if name != "bench":  # needs matplotlib
            assert callable(command.load())


def other_value(name: str) -> object:
    default, allowed = getattr(Config(), name), choices(name)
    if allowed:
        return next(value for value in allowed if value != default)
    kind = Config.__dataclass_fields__[name].type
    if "bool" in kind:
        return not default
    if "float" in kind:
        return 0.5 if name in ("memory_fraction", "pin_share") else 7.5
    number = 64 if name in ("page_size", "threads", "frontends") else 2048
    return number if "int" in kind else "something"


@pytest.mark.parametrize("name", [spec.name for spec in dataclasses.fields(Config)])
def test_every_option_has_a_flag_an_environment_twin_and_a_toml_key(name, tmp_path):
    value = other_value(name)
    expected = Config(**{name: value})
    words = (
        [f"--{flag(name)}" if value else f"--no-{flag(name)}"]
        if isinstance(value, bool)
        else [f"--{flag(name)}", str(value)]
    )
    file = tmp_path / "options.toml"
    file.write_text(f"{name} = {str(value).lower() if isinstance(value, bool) else repr(value)}\n")
    assert parse(*words) == expected
    assert parse(environment={f"RADIXLM_{name.upper()}": str(value)}) == expected
    assert parse("--config", str(file)) == expected


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path):
    file = tmp_path / "options.toml"
    file.write_text("port = 1\nmax-running = 2\npage_size = 3\n")
    config = parse(
        "--port", "10", "--config", str(file), environment={"RADIXLM_PORT": "11", "RADIXLM_MAX_RUNNING": "12"}
    )
    assert (config.port, config.max_running, config.page_size) == (10, 12, 3)


def test_the_spellings_of_sglang_mean_our_options():
    config = parse(
        "--model-path", "m", "--tokenizer-path", "t", "--mem-fraction-static", "0.5", "--max-running-requests", "3",
        "--max-queued-requests", "4", "--chunked-prefill-size", "128", "--schedule-policy", "fcfs", "--max-total-tokens",
        "4096", "--disable-radix-cache", "--context-length", "512", "--log-level", "warning", "--served-model-name", "x",
    )  # fmt: skip
    assert config == Config(
        model="m", tokenizer="t", memory_fraction=0.5, max_running=3, max_queued=4, tokens_per_step=128, policy="fcfs",
        kv_tokens=4096, prefix_cache=False, context_length=512, log_level="warning", served_model_name="x",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "environment", "words"),
    [
        (["--max-runing", "3"], {}, ["--max-runing", "did you mean --max-running"]),
        (["--port", "x"], {}, ["--port", "x"]),
        (["--port", "70000"], {}, ["port", "70000", "65535"]),
        (["--policy", "magic"], {}, ["policy", "magic", "lpm"]),
        ([], {"RADIXLM_PROT": "1"}, ["prot", "did you mean port"]),
        ([], {"RADIXLM_OVERLAP": "perhaps"}, ["RADIXLM_OVERLAP", "perhaps"]),
        (["--config", "/nowhere.toml"], {}, ["/nowhere.toml"]),
    ],
)
def test_a_wrong_option_is_an_error_that_names_it(argv, environment, words):
    with pytest.raises(ConfigError) as caught:
        parse(*argv, environment=environment)
    assert all(word in caught.value.message for word in words)


@pytest.mark.parametrize("value", ["8", 8.5, True, None])
def test_a_value_of_the_wrong_type_is_refused(value):
    with pytest.raises(ConfigError, match="page_size"):
        from_mapping({"page_size": value}, "LLM")


def test_the_command_line_reports_errors_in_one_line(capsys):
    assert main(["serv"]) == 2
    assert main(["serve", "--prot", "1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "did you mean serve?" in lines[0]
    assert "did you mean --port?" in lines[1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_an_output_that_cannot_be_written_is_an_error_in_one_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "radixlm", "version"]
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert run.returncode == 1
    assert run.stderr == "radixlm: error: [Errno 28] No space left on device\n"


def test_version_prints_the_version(capsys):
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"radixlm {__version__}\n"


class Echo:
    """A partner that repeats the conversation so far, or fails."""

    def __init__(self):
        self.fails = False

    def __call__(self, messages, sampling):
        if self.fails:
            raise NotReady("busy")
        yield Delta(index=0, text=" / ".join(message["content"] for message in messages))
        yield Delta(index=0, usage=Usage(prompt_tokens=10, completion_tokens=4, cached_tokens=7))


def talk(partner, *lines):
    written, reads = [], iter(lines)
    Conversation(partner, SamplingParams()).run(lambda: next(reads, None), written.append)
    return "".join(written)


def test_a_chat_keeps_its_turns_until_it_is_reset():
    text = talk(Echo(), "one", "two", "/reset", "three", "/exit", "four")
    assert "one / one / two\n" in text
    assert "\nthree\n" in text
    assert "four" not in text
    assert "7 of 10 prompt tokens from the cache" in text


def test_a_failed_answer_costs_only_its_message():
    partner = Echo()
    partner.fails = True
    reads = iter(["lost", "kept"])

    def read():
        word = next(reads, None)
        partner.fails = word == "lost"
        return word

    written: list[str] = []
    Conversation(partner, SamplingParams()).run(read, written.append)
    text = "".join(written)
    assert "error: busy" in text
    assert "\nkept\n" in text


def test_a_chat_through_a_pipe_fails_in_one_line_where_nobody_answers(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert main(["chat", "http://127.0.0.1:1"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("error: http://127.0.0.1:1") and "Connection refused" in last and "<" not in last


def test_the_panel_tells_how_many_requests_fit_at_full_context():
    info = EngineInfo(
        model="m", architecture="llama", dtype="float32", device="cpu", vocab_size=10, context_length=1000, num_pages=250,
        page_size=16, max_running=64, max_queued=1, tokens_per_step=1, eos_token_ids=(), weight_bytes=3 << 20, kv_bytes=1 << 31,
    )  # fmt: skip
    said = dict(facts(info, "http://h:1"))
    assert said["KV tokens"] == "4,000 in pages of 16: 4 requests at full context"
    assert said["memory"] == "weights 3 MiB, KV 2.00 GiB"
    assert curl_line(info, "http://h:1").startswith("curl http://h:1/v1/chat/completions ")
