"""The start-up panel: what is served, how memory is split, where, and a request that works. Plain lines off a terminal."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from radixlm.messages import EngineInfo
from radixlm.version import __version__


def show_panel(info: EngineInfo, url: str) -> None:
    """Prints to stdout: a frame on a terminal, `name: value` lines elsewhere."""
    lines, curl = facts(info, url), curl_line(info, url)
    if not sys.stdout.isatty():
        print(*(f"{name}: {value}" for name, value in lines), f"try: {curl}", sep="\n", flush=True)
        return
    table = Table.grid(padding=(0, 2))
    for name, value in lines:
        table.add_row(f"[dim]{name}[/dim]", value)
    console = Console()
    console.print(Panel(table, title=f"RadixLM {__version__}", title_align="left", expand=False))
    # Outside the frame and unwrapped, so that it can be copied.
    console.print(curl, soft_wrap=True, highlight=False, markup=False)


def facts(info: EngineInfo, url: str) -> list[tuple[str, str]]:
    """What the panel says, by name."""
    kv_tokens = info.num_pages * info.page_size
    full = min(info.max_running, kv_tokens // info.context_length)
    return [
        ("model", f"{info.model} ({info.architecture}, {info.context_length:,} tokens of context)"),
        ("device", f"{info.device}, {info.dtype}"),
        ("kernels", f"attention {info.attention}, ops {info.ops}"),
        ("memory", f"weights {_size(info.weight_bytes)}, KV {_size(info.kv_bytes)}"),
        ("KV tokens", f"{kv_tokens:,} in pages of {info.page_size}: {full} requests at full context"),
        ("requests", f"{info.max_running} at a time, {info.max_queued} waiting, {info.tokens_per_step} tokens a step"),
        ("listening", f"{url} (a page; OpenAI at /v1; Anthropic, Ollama and SGLang at /)"),
    ]


def curl_line(info: EngineInfo, url: str) -> str:
    """A chat request for a shell."""
    messages = '[{"role": "user", "content": "What is the capital of France?"}]'
    body = f'{{"model": "{info.model}", "temperature": 0, "messages": {messages}}}'
    return f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"
