"""Sampling flags, shared by the commands that generate."""

from __future__ import annotations

import argparse

from radixlm.types import SamplingParams


def add_sampling(parser: argparse.ArgumentParser, *, max_tokens: int, temperature: float) -> None:
    """Adds the flags that people type; the library and the server take all of `SamplingParams`."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--max-tokens", type=int, default=max_tokens, help=f"most tokens (default: {max_tokens})")
    group.add_argument("--temperature", type=float, default=temperature, help=f"0 is greedy (default: {temperature})")
    group.add_argument("--top-p", type=float, default=1.0, help="share of probability to sample from (default: 1)")
    group.add_argument("--top-k", type=int, default=-1, help="number of tokens to sample from (default: all)")
    group.add_argument("--min-p", type=float, default=0.0, help="least probability beside the best one's (default: 0)")
    group.add_argument("--repetition-penalty", type=float, default=1.0, help="over 1 avoids repetition (default: 1)")
    group.add_argument("--seed", type=int, default=None, help="makes sampling repeatable")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends the text; may be repeated")


def sampling_of(parsed: argparse.Namespace) -> SamplingParams:
    """The parameters that were typed; ranges are checked where all requests are."""
    typed = {name: value for name, value in vars(parsed).items() if name in SamplingParams.__struct_fields__}
    return SamplingParams(**typed)
