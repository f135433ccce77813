"""The keys of a GGUF file. What nobody has taken when a model is described must be known to change nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from attnlens.capture.models.gguf.file import Header
from attnlens.schemas.errors import ModelError

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.shared_kv_layers": (0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "expert_count": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_count": (0,),
    "expert_used_count": (0,),
    "expert_weights_scale": (0, 1),
    "final_logit_softcapping": (0,),
    "leading_dense_block_count": (0,),
    "logit_scale": (0, 1),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "residual_scale": (0, 1),
    "router_logit_softcapping": (0,),
    "use_parallel_residual": (False,),
}
"""Keys of an architecture, and the values at which they change nothing. 0 is llama.cpp's "not set"."""

NEUTRAL_TOKENIZER: dict[str, Any] = {
    "tokenizer.ggml.add_sep_token": False,
    "tokenizer.ggml.normalizer.lowercase": False,
    "tokenizer.ggml.normalizer.strip_accents": False,
    "tokenizer.ggml.remove_extra_whitespaces": False,
}
"""Keys of a tokenizer, and the value at which they change nothing."""

WITHOUT_EFFECT = frozenset(
    {
        "rope.scaling.finetuned",  # says how the model was trained
        "tensor_data_layout",  # each architecture has one layout today; what it is we know by the architecture
    }
)
"""Keys of an architecture that change nothing, whatever they say."""

TOKENIZER_WITHOUT_EFFECT = (
    "tokenizer.chat_templates",  # names of further templates
    "tokenizer.chat_template.",  # and these; the default one is used
    "tokenizer.ggml.cls_token_id",
    "tokenizer.ggml.mask_token_id",
    "tokenizer.ggml.separator_token_id",
    "tokenizer.ggml.seperator_token_id",  # as llama.cpp wrote it for long
    "tokenizer.ggml.fim_",
    "tokenizer.ggml.prefix_token_id",
    "tokenizer.ggml.suffix_token_id",
    "tokenizer.ggml.middle_token_id",
    "tokenizer.ggml.token_type_count",  # of segments, which decoders do not use
    "tokenizer.huggingface.json",  # a second copy of the tokenizer
)
"""Beginnings of keys that name tokens of some use, or further templates; they change no ids."""

GENERAL = (
    *("architecture", "type", "name", "basename", "finetune", "size_label", "version", "description"),
    *("author", "organization", "license", "url", "doi", "uuid", "repo_url", "quantized_by", "tags", "languages"),
    *("datasets", "dataset", "base_model", "source", "file_type", "quantization_version", "alignment"),
)
"""Keys general.* that need no word: what a model is called and where it comes from, and how the file is laid out."""


def said(value: Any) -> str:
    """A value as a message may print it."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


class Keys:
    """The keys of a file, by their names within its architecture; remembers which were taken."""

    def __init__(self, header: Header) -> None:
        """Of one file."""
        self.header = header
        self.architecture = header.architecture
        self._taken: set[str] = set()
        self.tensors: set[str] = set()
        """Tensors that are part of the configuration."""

    def refuse(self, *problem: str) -> ModelError:
        """An error to raise: what in the file stands against its use, in words that follow its name."""
        return ModelError(
            f"{self.header.path.name}: ",
            *problem,
            ". attnlens would compute something else than the model: "
            "capture the checkpoint that the file was made of instead",
        )

    def refuse_key(self, name: str, why: str) -> ModelError:
        """An error to raise: the key `name` of the architecture cannot be applied."""
        full = f"{self.architecture}.{name}"
        field = self.header.fields.get(full)
        return self.refuse(f"the key {full} = {said(None if field is None else field.contents())} {why}")

    def whole(self, full: str, default: Any = None) -> Any:
        """The value of a key by its full name, `default` if there is none."""
        self._taken.add(full)
        field = self.header.fields.get(full)
        if field is None:
            return default
        value = field.contents()
        return shortest(value) if field.types[-1].name == "FLOAT32" else value

    def take(self, *full: str) -> None:
        """Mark keys, by their full names, as applied elsewhere."""
        self._taken.update(full)

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a key of the architecture, `default` if there is none."""
        return self.whole(f"{self.architecture}.{name}", default)

    def need(self, name: str) -> Any:
        """The value of a key of the architecture.

        Raises:
            ModelError: there is none.
        """
        value = self.get(name)
        if value is None:
            raise ModelError(
                f"{self.header.path.name} has no key {self.architecture}.{name}: it was written by a program that "
                "attnlens does not know"
            )
        return value

    def one(self, name: str, default: Any = None) -> Any:
        """A number that may be given for each layer, but is the same in all; `default` as for `get`, else needed.

        Raises:
            ModelError: it differs from layer to layer.
        """
        value = self.need(name) if default is None else self.get(name, default)
        if not isinstance(value, list):
            return value
        if len(set(value)) != 1:
            raise self.refuse_key(name, "differs from layer to layer, which transformers' model cannot do")
        return value[0]

    def expect(self, name: str, values: Sequence[Any]) -> None:
        """Return if the key has one of `values` (floats to a millionth), or is not there.

        Raises:
            ModelError: it has another.
        """
        value = self.get(name)
        if value is not None and not any(same(value, allowed) for allowed in values):
            raise self.refuse_key(name, f"is not {' or '.join(map(said, values))}")

    def finish(self, *, tokenizer: bool = True) -> list[str]:
        """Names of keys outside of the model that we do not know, to be noted; `tokenizer`: the file's own is used.

        Raises:
            ModelError: a key of the architecture or the tokenizer is neither applied nor known to change nothing.
        """
        unknown: list[str] = []
        noted: list[str] = []
        for full in self.header.fields:
            space, _, name = full.partition(".")
            if full in self._taken or space == "GGUF" or self._harmless(space, name, full):
                continue
            ours = space == self.architecture or (space == "tokenizer" and tokenizer)
            (unknown if ours else noted).append(full)
        if unknown:
            values = ", ".join(f"{full} = {said(self.header.fields[full].contents())}" for full in unknown[:3])
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            if all(full.startswith("tokenizer.") for full in unknown):
                more += " (--tokenizer names another tokenizer)"
            raise self.refuse(f"{'keys that are' if len(unknown) > 1 else 'a key that is'} not applied: {values}{more}")
        return sorted(noted)

    def _harmless(self, space: str, name: str, full: str) -> bool:
        if space == self.architecture:
            value = self.header.fields[full].contents()
            neutral = NEUTRAL.get(name, ())
            values = value if isinstance(value, list) else [value]
            return name in WITHOUT_EFFECT or all(any(same(v, allowed) for allowed in neutral) for v in values or [None])
        if space == "general":
            return name.partition(".")[0] in GENERAL
        if full in NEUTRAL_TOKENIZER:
            return bool(self.header.fields[full].contents() == NEUTRAL_TOKENIZER[full])
        return full.startswith(TOKENIZER_WITHOUT_EFFECT)


def same(value: Any, allowed: Any) -> bool:
    """Equal, floats to a millionth."""
    if isinstance(value, int | float) and isinstance(allowed, int | float):
        return math.isclose(value, allowed, rel_tol=1e-6)
    return bool(value == allowed)


def shortest(value: Any) -> Any:
    """The shortest decimal of a float32, or of each in a list: 1e-05 and not 9.999999747378752e-06."""
    return [shortest(item) for item in value] if isinstance(value, list) else float(str(np.float32(value)))
