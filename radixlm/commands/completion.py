"""`radixlm completion bash|zsh|fish`: prints a script that completes commands, flags and their values.

The flags of `Config` come from its table; the few that a command adds of its own stand here, and a test compares them with
what the command's --help says. Nothing heavy is imported, so a shell may evaluate this at its start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

from radixlm.config import Config, choices, flag
from radixlm.options import MODEL_GROUPS, Parser

_SAMPLING = "max-tokens temperature top-p top-k min-p repetition-penalty seed stop"
_OWN: dict[str, tuple[tuple[str, ...], str]] = {
    "serve": ((*MODEL_GROUPS, "server"), "config"),
    "chat": (MODEL_GROUPS, f"config system {_SAMPLING}"),
    "generate": (MODEL_GROUPS, f"config chat {_SAMPLING}"),
    "batch": (MODEL_GROUPS, "config url key concurrency"),
    "plan": (MODEL_GROUPS, "config memory json"),
    "doctor": (("model", "device"), "config json"),
    "key": ((), "scope max-requests max-tokens"),
    "completion": ((), ""),
    "bench": ((), ""),
    "version": ((), ""),
}
"""Per command: the groups of options that it takes, and its own flags."""

SHELLS = ("bash", "zsh", "fish")


def main(argv: Sequence[str]) -> int:
    """Prints the script for a shell."""
    parser = Parser("radixlm completion", 'Print a completion script: eval "$(radixlm completion bash)".')
    parser.add_argument("shell", choices=SHELLS)
    shell = parser.read(argv).shell
    print("\n".join(fish() if shell == "fish" else bash(shell)))
    return 0


def flags(command: str) -> list[str]:
    """All flags of a command."""
    groups, own = _OWN[command]
    return [f"--{name}" for name in own.split()] + [name for name, _ in _options(groups)]


def _options(groups: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(flag, what it does) of these groups, with the --no- form of switches."""
    for spec in fields(Config):
        if spec.metadata["group"] in groups:
            text = str(spec.metadata["help"])
            yield f"--{flag(spec.name)}", text
            if isinstance(spec.default, bool) or spec.name == "overlap":
                yield f"--no-{flag(spec.name)}", text


def bash(shell: str) -> Iterator[str]:
    """For bash, and for zsh by its own emulation of bash's."""
    if shell == "zsh":
        yield "autoload -U +X compinit && compinit -u; autoload -U +X bashcompinit && bashcompinit"
    yield "_radixlm() {"
    yield '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words=""'
    yield '  case "$before" in'
    for spec in fields(Config):
        if allowed := choices(spec.name):
            yield f'    --{flag(spec.name)}) words="{" ".join(allowed)}";;'
    yield f'    completion) words="{" ".join(SHELLS)}";;'
    yield "  esac"
    yield '  if [ -z "$words" ]; then case "${COMP_WORDS[1]}" in'
    for command in _OWN:
        yield f'    {command}) [[ "$word" == -* ]] && words="--help {" ".join(flags(command))}";;'
    yield f'    *) [ "$COMP_CWORD" -eq 1 ] && words="{" ".join(_OWN)}";;'
    yield "  esac; fi"
    yield '  COMPREPLY=($(compgen -W "$words" -- "$word"))'
    yield "}"
    yield "complete -o default -F _radixlm radixlm"


def fish() -> Iterator[str]:
    """For fish, with the sentence of every option."""
    yield f"complete -c radixlm -n __fish_use_subcommand -f -a '{' '.join(_OWN)}'"
    for command, (groups, own) in _OWN.items():
        start = f"complete -c radixlm -n '__fish_seen_subcommand_from {command}'"
        for name in own.split():
            yield f"{start} -l {name}"
        for name, text in _options(groups):
            allowed = choices(name.removeprefix("--").replace("-", "_")) if not name.startswith("--no-") else None
            values = f" -x -a '{' '.join(allowed)}'" if allowed else ""
            yield f"{start} -l {name.removeprefix('--')}{values} -d {_quoted(text)}"
    yield f"complete -c radixlm -n '__fish_seen_subcommand_from completion' -f -a '{' '.join(SHELLS)}'"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
