"""What each array tells about a token of the text, so that a redaction knows what has to go.

Every array of the table is named here; a test says so. Arrays that the contract does not know are left out of a
redacted store. docs/security.md gives the reasons in words, and what remains in spite of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from attnlens.schemas.arrays import ArraySpec

Tells = Literal["nothing", "itself", "vocabulary", "reading", "next", "stream", "projection", "tracked", "weights"]
"""nothing: numbers of positions. itself: the token at its position. vocabulary: rewritten to what is still used.
reading: what a lens says at a position, which at low depths is the token. next: about the token that follows. stream:
the residual stream, from which the token and the next can be read. projection: of the stream; in low layers nearly the
token. tracked: of the tokens that were followed. weights: attention, which stays."""


@dataclass(frozen=True)
class Sensitivity:
    """`ids`: of a reading with ranks, the array that says which tokens they are of."""

    tells: Tells
    ids: str | None = None


SENSITIVITY: Mapping[str, Sensitivity] = {
    **dict.fromkeys(
        (
            "token",
            "query",
            "key",
            "layer",
            "head",
            "kv_head",
            "depth",
            "generated",
            "manifest_file",
            "manifest_sha256",
            "chunk_sha256",
        ),
        Sensitivity("nothing"),
    ),
    **dict.fromkeys(
        ("token_id", "token_text", "token_special", "token_bytes", "token_byte_offset"), Sensitivity("itself")
    ),
    **dict.fromkeys(("vocabulary_id", "vocabulary_text"), Sensitivity("vocabulary")),
    "lens_token": Sensitivity("reading", ids="lens_token"),
    "lens_probability": Sensitivity("reading", ids="lens_token"),
    "lens_entropy": Sensitivity("reading"),
    "mid_token": Sensitivity("reading", ids="mid_token"),
    "mid_probability": Sensitivity("reading", ids="mid_token"),
    "mid_entropy": Sensitivity("reading"),
    **dict.fromkeys(
        ("next_rank", "next_probability", "model_probability", "mid_next_rank", "mid_next_probability"),
        Sensitivity("next"),
    ),
    "residual": Sensitivity("stream"),
    **dict.fromkeys(("attention_q", "attention_k", "value_norm"), Sensitivity("projection")),
    **dict.fromkeys(("tracked_id", "tracked_text", "tracked_rank", "tracked_probability"), Sensitivity("tracked")),
    **dict.fromkeys(("attention_weight", "attention_max", "attention_mean"), Sensitivity("weights")),
}


def sensitivity_of(spec: ArraySpec) -> Sensitivity:
    """Of an array of the table, or of a further lens."""
    found = SENSITIVITY[spec.base or spec.name]
    if spec.base is None or found.ids is None:
        return found
    return Sensitivity(found.tells, found.ids + spec.name.removeprefix(spec.base))
