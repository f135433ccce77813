"""What a person decides about a capture: what is kept of it, and how its text goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from attnlens.capture.generation_fields import check_overrides
from attnlens.capture.lenses.choice import LOGIT, choose_lenses, read_config
from attnlens.schemas.errors import InputError, Setting
from attnlens.store.layout import MIB

ENCODINGS = ("dense", "qk", "auto")
LENS_TOKENS = re.compile("generated|last:([1-9][0-9]{0,8})|([0-9]{1,9}|-[1-9][0-9]{0,8}):")
LENS_POINTS = ("layers", "all")
NUMBERS = (
    ("max_new_tokens", int, "a whole number"),
    ("temperature", int | float, "a number"),
    ("top_p", int | float, "a number"),
    ("seed", int, "a whole number"),
)
"""Fields of `Generation`, what they are, and the same in words."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is kept, the same for every prompt of a run. A run is resumed only with the same, `buffer_bytes` excepted.

    Attributes:
        attention: how it is kept: every weight (dense), queries and keys (qk), or what is smaller (auto).
        lens: read the residual stream of every depth through lenses.
        lenses: which: `logit`, `tuned:FOLDER`; the first has the plain names in the store.
        lens_points: `layers` reads between layers, `all` inside them too, after attention and before the MLP.
        lens_tokens: which tokens lenses read: `all`; `generated`, from the last prompt token on; `N:`, from token N of
            the prompt on; `-N:` or `last:N`, the last N of the prompt and all after it.
        track: tokens whose rank and probability are kept at every depth, each by its exact text or its id.
        residuals: keep the residual streams themselves.
        value_norm: keep the length of each value through its head's output projection.
        top_k: how many tokens of each reading to keep.
        buffer_bytes: host memory that rows may take while they wait to be written.
    """

    attention: str = "dense"
    lens: bool = True
    lenses: tuple[str, ...] = (LOGIT,)
    lens_points: str = "layers"
    lens_tokens: str = "all"
    track: tuple[str | int, ...] = ()
    residuals: bool = False
    value_norm: bool = True
    top_k: int = 5
    buffer_bytes: int = 64 * MIB

    @property
    def tuned(self) -> bool:
        """Whether a tuned lens was asked for."""
        return self.lens and any(choice.folder is not None for choice in choose_lenses(self.lenses))

    def lens_first(self, n_prompt: int) -> int:
        """The first token that lenses read, of a prompt of `n_prompt`.

        Raises:
            InputError: `lens_tokens` is none of these, or begins after the prompt.
        """
        first = self._first_read()
        if first >= max(1, n_prompt):  # a prompt without tokens is refused elsewhere
            there = f"the prompt has {n_prompt} tokens, lenses read from one of them on (0: to {n_prompt - 1}:)"
            raise InputError(Setting("lens_tokens"), f" is {self.lens_tokens!r}: {there}")
        return first if first >= 0 else max(0, n_prompt + first)

    def _first_read(self) -> int:
        """The first token that lenses read, from the prompt's end where it is negative."""
        if self.lens_tokens == "all":
            return 0
        found = LENS_TOKENS.fullmatch(self.lens_tokens)
        if not found:
            expected = "expected all, generated, N: (from token N on), or -N: or last:N with N from 1"
            raise InputError(Setting("lens_tokens"), f" is {self.lens_tokens!r}, {expected}")
        return int(found[2]) if found[2] else -int(found[1] or 1)

    def check(self) -> None:
        """Refuses what means nothing, and folders of lenses that hold none.

        Raises:
            InputError: as said.
        """
        if self.attention not in ENCODINGS:
            raise InputError(Setting("attention"), f" is {self.attention!r}, expected one of {', '.join(ENCODINGS)}")
        choices = choose_lenses(self.lenses)
        if not choices:
            raise InputError(Setting("lenses"), " names no lens, expected logit or tuned:FOLDER")
        if self.lens_points not in LENS_POINTS:
            raise InputError(Setting("lens_points"), f" is {self.lens_points!r}, expected {' or '.join(LENS_POINTS)}")
        self._first_read()
        if not self.lens and (
            self.lens_tokens != "all" or self.track or self.lens_points != LENS_POINTS[0] or self.lenses != (LOGIT,)
        ):
            lenses, tokens, track, points = map(Setting, ("lenses", "lens_tokens", "track", "lens_points"))
            asked = (lenses, ", ", tokens, ", ", track, " and ", points)
            raise InputError(*asked, " ask for a lens, and ", Setting("lens=False"), " for none")
        if self.lens_points == "all" and LOGIT not in {choice.name for choice in choices}:
            raise InputError(
                Setting("lens_points"), " all reads through the logit lens: add logit to ", Setting("lenses")
            )
        for choice in choices:
            if choice.folder is not None:
                read_config(choice.folder)
        if self.top_k < 1:
            raise InputError(Setting("top_k"), f" is {self.top_k}, expected 1 or more")
        if self.buffer_bytes < MIB:
            raise InputError(Setting("buffer_bytes"), f" is {self.buffer_bytes} bytes, expected 1 MiB or more")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How one text goes on.

    Attributes:
        max_new_tokens: how many tokens to generate at the most.
        temperature: of sampling; 0 takes the most probable token.
        top_p: nucleus of sampling, Holtzman et al. 2020.
        seed: of sampling.
        overrides: fields of the model's generation settings that are replaced; None unsets one.
    """

    max_new_tokens: int = 256
    temperature: float = 0.1
    top_p: float = 0.9
    seed: int = 0
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Numbers of numpy become Python's, which can be recorded."""
        for name, _, _ in NUMBERS:
            value = getattr(self, name)
            if hasattr(value, "item"):
                object.__setattr__(self, name, value.item())

    def check(self) -> None:
        """Refuses numbers and settings that mean nothing.

        Raises:
            InputError: as said.
        """
        check_overrides(self.overrides)
        for name, kind, words in NUMBERS:
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise InputError(Setting(name), f" is {value!r}, expected {words}")
        if self.max_new_tokens < 0:
            raise InputError(Setting("max_new_tokens"), f" is {self.max_new_tokens}, expected 0 or more")
        if not 0 <= self.temperature < float("inf"):
            expected = "expected 0 (the most probable token) or more"
            raise InputError(Setting("temperature"), f" is {self.temperature}, {expected}")
        if not 0 < self.top_p <= 1:
            raise InputError(Setting("top_p"), f" is {self.top_p}, expected more than 0 and at most 1")
        if not -(2**63) <= self.seed < 2**63:
            raise InputError(Setting("seed"), f" is {self.seed}, expected a number of 64 bits, -2^63 … 2^63 - 1")


def parse_overrides(given: Sequence[str]) -> dict[str, Any]:
    """Generation settings from FIELD=VALUE texts; a value is JSON, or a text where it is no JSON.

    Raises:
        InputError: no `=`, no field, a field twice, or one that cannot be replaced so.
    """
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise InputError(f"--generation {text}: expected FIELD=VALUE, for example num_beams=1 or top_k=null")
        if name in found:
            raise InputError(f"--generation sets {name} twice")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return check_overrides(found)
