"""Log probabilities of tokens, and their message form.

They are of the model's own distribution: log_softmax of the logits as computed, in float32, before temperature, penalties,
bias, masks and cuts - so that they mean the same for every request and for prompt and output alike (vLLM's default and
OpenAI's observed behaviour; SGLang divides by the temperature unless told otherwise).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from radixlm.messages import Logprobs, TokenLogprobs
from radixlm.ops.draw import top

MARGIN = 32  # at least so many are looked for, so that the order of equal ones does not depend on batch mates


@dataclass(frozen=True, slots=True)
class Scores:
    """Log probabilities at some positions: of the token there, and of the most likely tokens, best first."""

    tokens: torch.Tensor  # int64 [rows]
    chosen: torch.Tensor  # float32 [rows]
    top_tokens: torch.Tensor  # int64 [rows, k]
    top_logprobs: torch.Tensor  # float32 [rows, k]
    counts: list[int]  # [rows]: how many of the k each row reports

    def messages(self) -> list[TokenLogprobs]:
        """One for each row. Waits for the device."""
        columns = (self.tokens.tolist(), self.chosen.tolist(), self.top_tokens.tolist(), self.top_logprobs.tolist())
        return [
            TokenLogprobs(token, logprob, tuple(tokens[:count]), tuple(logprobs[:count]))
            for token, logprob, tokens, logprobs, count in zip(*columns, self.counts)
        ]


def score(logprobs: torch.Tensor, tokens: torch.Tensor, counts: list[int]) -> Scores:
    """Of logprobs [rows, vocab]: those of tokens [rows], and the `counts[i]` best of row i."""
    count, tokens = max(counts), tokens.long()
    chosen = logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1)
    values, ids = top(logprobs, max(count, MARGIN)) if count else (logprobs[:, :0], tokens.new_empty(len(tokens), 0))
    return Scores(tokens, chosen, ids[:, :count], values[:, :count], counts)


def log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """logits [rows, vocab] of any type -> float32 [rows, vocab]."""
    return torch.log_softmax(logits, dim=-1, dtype=torch.float32)


@dataclass(frozen=True, slots=True)
class RowScores:
    """Scores of one chunk's consecutive positions from `start` on, in parts."""

    row: int
    start: int
    parts: list[Scores]

    def message(self) -> tuple[int, Logprobs]:
        """(chunk row, message without key). Waits for the device."""
        return self.row, Logprobs(0, self.start, tuple(message for part in self.parts for message in part.messages()))
