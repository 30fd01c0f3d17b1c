"""Steps on a CPU in one call: the native operations of a forward pass are recorded once, then replayed for every step.

Dispatching a step's few hundred operations from Python takes 1 to 2 ms, ten times as long where computing has emptied the
caches. The recording is believed only after it has computed a step to the same bits as the model does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from radixlm.ops.library import NotRecordable, Recording
from radixlm.runner.inputs import Inputs
from radixlm.runner.sampler import Rows
from radixlm.types import IntArray

logger = logging.getLogger(__name__)


class Replays:
    """Computes steps of up to a number of tokens. Model and attention must be native."""

    def __init__(self, compute: Callable[[Inputs], torch.Tensor], most: int, trial: Inputs) -> None:
        """`compute`: the forward pass, [wanted, hidden]. Recorded for up to `most` tokens, or half of them and so on where an
        operation refuses so many. `trial` is a step that changes nothing.
        """
        self._recording: Recording | None = None
        reason: Exception | None = None
        while most and self._recording is None:
            try:
                self._inputs = own = _room(most)
                self._recording = Recording(partial(compute, own), most)
            except NotRecordable as refused:
                reason, most = refused, most // 2
        if self._recording is not None and not torch.equal(self.hidden(trial), compute(trial)):
            reason, self._recording = NotRecordable("something beside the native operations computes"), None
        if reason is not None:
            logger.info("Steps of more than %d tokens are not recorded: %s", self.most_tokens, reason)

    @property
    def most_tokens(self) -> int:
        """Larger steps are not for `hidden`."""
        return 0 if self._recording is None else self._recording.most

    def hidden(self, inputs: Inputs) -> torch.Tensor:  # hot
        """As `compute`; valid until the next step."""
        assert self._recording is not None, "nothing is recorded"
        for own, column in zip(self._inputs.columns(), inputs.columns()):
            own[: len(column)] = column
        num_wanted = len(inputs.outputs)
        return self._recording.run(len(inputs.tokens), num_wanted, len(inputs.slots))[:num_wanted]


def _room(most: int) -> Inputs:
    """Memory for any step of up to `most` tokens."""

    def ints(count: int = most) -> IntArray:
        return np.zeros(count, dtype=np.int32)

    rows = Rows(ints(0), ints(0), torch.zeros(0, dtype=torch.int32))
    return Inputs(ints(), ints(), ints(), ints(most + 1), ints(), ints(), ints(), ints(most + 1), rows)
