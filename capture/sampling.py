"""From logits to the next token, and whether the text ends with it, as transformers' `generate` decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attnlens.capture.finite import not_finite
from attnlens.capture.generation import prepare, told
from attnlens.capture.models.failure import one_line
from attnlens.capture.settings import Generation
from attnlens.schemas.errors import ModelError, Setting


class Sampler:
    """Chooses the tokens of one text, one at a time: greedy at temperature 0, else from its own seeded generator.

    Attributes:
        settings: the generation settings that hold, as plain JSON.
        ends: ids that end a text.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, generation: Generation, prompt: Sequence[int], device: torch.device
    ) -> None:
        prepared = prepare(model, tokenizer, generation, prompt, device)
        self.settings, self.ends = prepared.held, prepared.ends
        self._processors, self._criteria = prepared.processors, prepared.criteria
        self._generation = generation
        self._generator = torch.Generator(device=device).manual_seed(generation.seed)

    def scores(self, timeline: Tensor, logits: Tensor) -> Tensor:
        """What a token is chosen from: scores float32 (vocabulary), after processors and warpers.

        Args:
            timeline: ids so far, int64 (token).
            logits: of the model, (vocabulary); they stay as they are.

        Raises:
            ModelError: a setting does not go with this vocabulary.
        """
        # The model's last layer may live on another device than its first.
        raw = logits[None].to(device=timeline.device, dtype=torch.float32, copy=True)
        try:
            found: Tensor = self._processors(timeline[None], raw)[0]
        except Exception as error:  # any processor of transformers may run here
            raise ModelError(
                f"the generation settings {told(self.settings)} fail at token {len(timeline)}: {one_line(error)}"
            ) from error
        return found

    def choose(self, timeline: Tensor, logits: Tensor) -> int:
        """The next token after `timeline` int64 (token), given `logits` (vocabulary).

        Raises:
            ModelError: no token is left to choose.
        """
        scores = self.scores(timeline, logits)
        probabilities = torch.softmax(scores, dim=-1)
        # Asked first: a draw from such numbers is an error that a GPU does not recover from.
        if bool(torch.isnan(probabilities).any()):
            raise ModelError(*self._nothing_left(len(timeline), logits))
        if self._generation.temperature == 0:
            return int(scores.argmax())
        return int(torch.multinomial(probabilities, 1, generator=self._generator))

    def is_over(self, timeline: Tensor) -> bool:
        """Whether the text ends with the last token of `timeline` int64 (token), which belongs to it."""
        if self.ends and int(timeline[-1]) in self.ends:
            return True
        return any(bool(criterion(timeline[None], None)[0]) for criterion in self._criteria)

    def _nothing_left(self, n_token: int, logits: Tensor) -> tuple[str, ...]:
        """Why nothing can be chosen after `n_token` tokens."""
        if bool((torch.isnan(logits) | torch.isposinf(logits)).any()):
            return not_finite(f"after token {n_token} the model's logits are", logits.dtype).args
        drawn = f"temperature={self._generation.temperature}, top_p={self._generation.top_p}"
        names = ", ".join(part for part in (drawn if self._generation.temperature else "", told(self.settings)) if part)
        return (
            f"no token can be chosen after token {n_token}: the generation settings {names} leave none; replace one: ",
            Setting("generation={'FIELD': VALUE}", "--generation FIELD=VALUE"),
        )
