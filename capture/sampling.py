"""From logits to the next token, with transformers' own logits processors and the model's generation settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.generation import logits_process as process

from attnlens.schemas.errors import ModelError

# Field of a generation config → processor made from its value. The order is that of transformers' `generate`.
_PROCESSORS: tuple[tuple[str, Callable[[Any], process.LogitsProcessor]], ...] = (
    ("sequence_bias", process.SequenceBiasLogitsProcessor),
    ("repetition_penalty", process.RepetitionPenaltyLogitsProcessor),
    ("no_repeat_ngram_size", process.NoRepeatNGramLogitsProcessor),
)
_WARPERS: tuple[tuple[str, Callable[[Any], process.LogitsProcessor]], ...] = (
    ("temperature", process.TemperatureLogitsWarper),
    ("top_k", process.TopKLogitsWarper),
    ("top_p", process.TopPLogitsWarper),
    ("min_p", process.MinPLogitsWarper),
    ("typical_p", process.TypicalLogitsWarper),
    ("epsilon_cutoff", process.EpsilonLogitsWarper),
)
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1, 1.0),
    "no_repeat_ngram_size": (0,),
    "temperature": (1, 1.0),
    "top_k": (0,),
    "top_p": (1, 1.0),
    "typical_p": (1, 1.0),
    "epsilon_cutoff": (0, 0.0),
    "min_p": (0, 0.0),
    "guidance_scale": (1, 1.0),
    "penalty_alpha": (0, 0.0),
}
_UNSUPPORTED = ("guidance_scale", "penalty_alpha", "watermarking_config", "dola_layers", "forced_bos_token_id")
"""Settings that would change the text in a way this loop does not do: refused rather than ignored."""


class Sampler:
    """Chooses tokens one at a time: greedy at temperature 0, else from its own seeded generator."""

    def __init__(
        self, model: nn.Module, *, temperature: float, top_p: float, seed: int, n_prompt: int, device: torch.device
    ) -> None:
        config: GenerationConfig = getattr(model, "generation_config", None) or GenerationConfig()
        self.settings = _settings(config)
        for field in _UNSUPPORTED:
            if self.settings.get(field) not in (None, *_NEUTRAL.get(field, ())):
                raise ModelError(
                    f"the model's generation settings ask for {field}={self.settings[field]!r}, which attnlens does "
                    "not do; set it to None on model.generation_config"
                )
        chosen = {**self.settings, "temperature": temperature, "top_p": top_p}
        tables = _PROCESSORS if temperature == 0 else _PROCESSORS + _WARPERS
        self._processors = process.LogitsProcessorList(
            make(chosen[field]) for field, make in tables if chosen.get(field) not in (None, *_NEUTRAL.get(field, ()))
        )
        self._add_token_rules(config, n_prompt, device)
        self._greedy = temperature == 0
        self._generator = torch.Generator(device=device).manual_seed(seed)

    def _add_token_rules(self, config: GenerationConfig, n_prompt: int, device: torch.device) -> None:
        ends = sorted(end_tokens(config))
        if config.bad_words_ids is not None:
            self._processors.append(process.NoBadWordsLogitsProcessor(config.bad_words_ids, ends or None))
        if config.min_new_tokens and ends:
            self._processors.append(
                process.MinNewTokensLengthLogitsProcessor(n_prompt, config.min_new_tokens, ends, device=str(device))
            )
        if config.suppress_tokens is not None:
            self._processors.append(process.SuppressTokensLogitsProcessor(config.suppress_tokens, device=str(device)))
        if config.begin_suppress_tokens is not None:
            self._processors.append(
                process.SuppressTokensAtBeginLogitsProcessor(config.begin_suppress_tokens, n_prompt, device=str(device))
            )

    def choose(self, timeline: Tensor, logits: Tensor) -> int:
        """The next token after `timeline` int64 (token), given `logits` (vocabulary)."""
        # The model's last layer may live on another device than its first.
        scores = self._processors(timeline[None], logits[None].to(timeline.device).float())
        if self._greedy:
            return int(scores[0].argmax())
        return int(torch.multinomial(torch.softmax(scores[0], dim=-1), 1, generator=self._generator))


def _settings(config: GenerationConfig) -> dict[str, Any]:
    """What the model's generation config sets, as plain JSON values."""
    found: dict[str, Any] = json.loads(json.dumps(config.to_diff_dict(), default=str))
    found.pop("transformers_version", None)
    return found


def end_tokens(config: GenerationConfig | None) -> frozenset[int]:
    """Ids at which generation stops."""
    ends = None if config is None else config.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset(int(end) for end in (ends if isinstance(ends, list | tuple) else [ends]))
