"""The command `radixlm`: picks a subcommand, imports it alone, and turns an `Error` into one line and exit code 1."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from radixlm.errors import ConfigError, Error
from radixlm.version import __version__


@dataclass(frozen=True)
class Command:
    """A subcommand: where its `main(argv) -> exit code` lives (`module:function`) and what it does."""

    target: str
    summary: str

    def load(self) -> Callable[[Sequence[str]], int]:
        """Imports the command."""
        module, function = self.target.split(":")
        return vars(importlib.import_module(module))[function]


COMMANDS = {
    "serve": Command("radixlm.commands.serve:main", "serve a model over HTTP"),
    "chat": Command("radixlm.commands.chat:main", "chat in the terminal with a model or a running server"),
    "generate": Command("radixlm.commands.generate:main", "complete prompts and print the text"),
    "batch": Command("radixlm.commands.batch:main", "run a file of requests, resumable"),
    "plan": Command("radixlm.commands.plan:main", "estimate memory and concurrency of a model without loading it"),
    "doctor": Command("radixlm.commands.doctor:main", "say what is installed and which kernels will be used"),
    "key": Command("radixlm.commands.key:main", "make an API key"),
    "completion": Command("radixlm.commands.completion:main", "print a completion script for a shell"),
    "bench": Command("radixlm.bench.main:main", "measure speed"),
    "version": Command("radixlm.cli:print_version", "print the version"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except Error as error:
        print(f"radixlm: error: {' '.join(error.message.split())}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        # The reader of our output is gone, or its disk is full; the interpreter's last flush must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"radixlm: error: {error}", file=sys.stderr)
        return 1


def print_version(argv: Sequence[str]) -> int:
    """`radixlm version`."""
    print(f"radixlm {__version__}")
    return 0


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in {"-h", "--help", "help"}:
        print(usage())
        return 0
    if words[0] in {"-V", "--version"}:
        words = ["version"]
    if words[0] not in COMMANDS:
        close = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; commands: {', '.join(COMMANDS)}"
        raise ConfigError(f"unknown command {words[0]}{hint}")
    return COMMANDS[words[0]].load()(words[1:])


def usage() -> str:
    """What `radixlm --help` prints."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: radixlm COMMAND [options]", "", "commands:", *lines, "", "radixlm COMMAND --help lists its options."]
    )
