"""params.json of Meta's original layout: what it says, and which tensors follow from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from attnlens.capture.models.failure import one_line
from attnlens.schemas.errors import ModelError

ROPE_THETA = 10000.0
CODE_ROPE_THETA = 1e6


class MetaParams(BaseModel):
    """The hyperparameters by the names of Meta's code. A name we do not know is refused: it may change the model.

    The `rope_*` keys apply with `use_scaled_rope` only; their defaults are those of Meta's Llama 3.1 code.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: int = Field(ge=2)
    n_layers: int = Field(ge=1)
    n_heads: int = Field(ge=1)
    n_kv_heads: int | None = Field(default=None, ge=1)
    head_dim: int | None = Field(default=None, ge=2)
    vocab_size: int = -1
    multiple_of: int = Field(default=256, ge=1)
    ffn_dim_multiplier: float | None = Field(default=None, gt=0)
    norm_eps: float = Field(default=1e-5, gt=0)
    rope_theta: float = Field(default=ROPE_THETA, gt=0)
    use_scaled_rope: bool = False
    rope_scaling_factor: float = Field(default=8.0, gt=0)
    rope_low_freq_factor: float = Field(default=1.0, gt=0)
    rope_high_freq_factor: float = Field(default=4.0, gt=0)
    rope_old_context_len: int = Field(default=8192, ge=1)
    max_seq_len: int | None = Field(default=None, ge=1)
    max_batch_size: int | None = None  # of Meta's own cache

    @model_validator(mode="after")
    def _heads_fit(self) -> MetaParams:
        if self.head_dim is None and self.dim % self.n_heads:
            raise ValueError(f"dim {self.dim} is no multiple of n_heads {self.n_heads}")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is no multiple of n_kv_heads {self.kv_heads}")
        if self.features % 2:
            raise ValueError(f"rotary embeddings need an even number of features in a head, found {self.features}")
        return self

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_heads or self.n_heads

    @property
    def features(self) -> int:
        """Width of a head."""
        return self.head_dim or self.dim // self.n_heads

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layer: two thirds of 4 · dim, scaled, rounded up to `multiple_of`."""
        hidden = int(2 * (4 * self.dim) / 3)
        if self.ffn_dim_multiplier is not None:
            hidden = int(self.ffn_dim_multiplier * hidden)
        return self.multiple_of * ((hidden + self.multiple_of - 1) // self.multiple_of)

    def context(self, *, tiktoken: bool) -> int:
        """Longest timeline in tokens. params.json rarely says it, so it is known by generation: Llama 3 has a tiktoken
        vocabulary, Code Llama a rotary base of 10⁶, Llama 2 neither.
        """
        if self.max_seq_len is not None:
            return self.max_seq_len
        if self.use_scaled_rope:
            return 131072
        if tiktoken:
            return 8192
        return 16384 if self.rope_theta == CODE_ROPE_THETA else 4096

    def rope(self) -> dict[str, Any]:
        """transformers' `rope_parameters`."""
        if not self.use_scaled_rope:
            return {"rope_type": "default", "rope_theta": self.rope_theta}
        return {
            "rope_type": "llama3",
            "rope_theta": self.rope_theta,
            "factor": self.rope_scaling_factor,
            "low_freq_factor": self.rope_low_freq_factor,
            "high_freq_factor": self.rope_high_freq_factor,
            "original_max_position_embeddings": self.rope_old_context_len,
        }


def read_params(path: Path) -> MetaParams:
    """Read params.json.

    Raises:
        ModelError: missing, no JSON, or with keys or values that are not those of a Llama.
    """
    if not path.is_file():
        raise ModelError(f"{path.parent} has consolidated.*.pth but no params.json")
    try:
        # null stands for "not given" in Meta's files
        given = {key: value for key, value in json.loads(path.read_text(encoding="utf-8")).items() if value is not None}
    except (ValueError, OSError, AttributeError) as error:
        raise ModelError(f"{path} cannot be read: {one_line(error)}") from error
    try:
        return MetaParams.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "as a whole"
        what = "is not a key we know of Llama" if first["type"] == "extra_forbidden" else first["msg"]
        raise ModelError(f"{path}: {where}: {what}") from error
