"""What is known of one architecture: how its keys become a configuration, and its tensors parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from attnlens.capture.models.gguf.keys import Keys

Config = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """Tensors `sources` of the file give the parameter `target`, or several of them. {n} is the layer, in both.

    `build` makes the parameter of the arrays and the configuration's values; by default it is the one array.
    """

    sources: tuple[str, ...]
    target: str | tuple[str, ...]
    build: Callable[..., Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One of llama.cpp's architectures that we read.

    `model_type` is transformers'; `config` makes the values of its configuration of the keys and, for presence and
    shapes, of the tensors' names; `rules` says where tensors go, given these values; `unread` says which may be
    there and change nothing. `renamed`: values that the configuration keeps under another name.
    """

    model_type: str
    config: Callable[[Keys], Config]
    rules: Callable[[Config], Sequence[Rule]]
    unread: Callable[[Config, str], bool] = lambda config, name: False
    why_unread: str = ""
    renamed: frozenset[str] = frozenset()


def has(keys: Keys, *suffixes: str) -> bool:
    """Some layer has a tensor of one of these names."""
    return any(name.startswith("blk.") and name.split(".", 2)[2] in suffixes for name in keys.header.tensors)


def common(
    keys: Keys,
    *,
    epsilon: str = "attention.layer_norm_rms_epsilon",
    norm: str = "rms_norm_eps",
    kv_heads: int | None = None,
    scale: bool = True,
) -> Config:
    """The values that nearly every architecture shares, by Llama's names.

    `kv_heads` where layers differ in them; `scale`: scores are scaled by the features of a head.

    Raises:
        ModelError: a key is missing, or contradicts another or the tensors.
    """
    heads, width = int(keys.one("attention.head_count")), int(keys.need("embedding_length"))
    if width % heads and keys.get("attention.key_length") is None:
        raise keys.refuse_key("attention.head_count", f"does not divide an embedding of {width}")
    config: Config = {
        "vocab_size": vocabulary(keys),
        "hidden_size": width,
        "intermediate_size": int(keys.one("feed_forward_length", 4 * width)),
        "num_hidden_layers": int(keys.need("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads or int(keys.one("attention.head_count_kv", heads)),
        "head_dim": head_size(keys, width // heads),
        "max_position_embeddings": int(keys.need("context_length")),
        norm: float(keys.need(epsilon)),
        "tie_word_embeddings": "output.weight" not in keys.header.tensors,
    }
    if scale:
        keys.expect("attention.scale", [0, config["head_dim"] ** -0.5])
    return config


def vocabulary(keys: Keys) -> int:
    """Rows of the embedding.

    Raises:
        ModelError: `vocab_size` is another number, or there are more tokens than rows.
    """
    rows = keys.header.shape("token_embd.weight")[0]
    keys.expect("vocab_size", [rows])
    field = keys.header.fields.get("tokenizer.ggml.tokens")
    if field is not None and len(field.data) > rows:
        raise keys.refuse(f"it has {len(field.data)} tokens and an embedding of {rows} rows")
    return rows


def head_size(keys: Keys, usual: int) -> int:
    """Features of a head, which are as many for values as for keys.

    Raises:
        ModelError: they are not.
    """
    size = int(keys.get("attention.key_length", usual))
    keys.expect("attention.value_length", [size])
    return size


# Rules


def blocks(names: dict[str, str], layers: str = "model.layers") -> list[Rule]:
    """Rules for parts of a layer, name to name; weight and bias each, where there is one."""
    return [
        Rule((f"blk.{{n}}.{theirs}.{kind}",), f"{layers}.{{n}}.{ours}.{kind}")
        for theirs, ours in names.items()
        for kind in ("weight", "bias")
    ]


def ends(embedding: str = "model.embed_tokens", norm: str = "model.norm") -> list[Rule]:
    """Rules for embedding, last norm and head."""
    return [
        Rule(("token_embd.weight",), f"{embedding}.weight"),
        Rule(("output_norm.weight",), f"{norm}.weight"),
        Rule(("output_norm.bias",), f"{norm}.bias"),
        Rule(("output.weight",), "lm_head.weight"),
    ]


ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}


def dense(_config: Config) -> list[Rule]:
    """Llama's parts, in the layout of transformers."""
    return ends() + blocks({**ATTENTION, **MLP, **NORMS})


def inner_width(keys: Keys) -> int:
    """Width of an expert, by its tensors; the key must agree."""
    width = keys.header.shape("blk.0.ffn_down_exps.weight")[-1]
    keys.expect("expert_feed_forward_length", [width])
    return width


def experts(_config: Config) -> list[Rule]:
    """Routed experts, stacked: (expert, out, in) in both; gate and up are one parameter of transformers'."""
    at = "model.layers.{n}.mlp"
    return [
        Rule(("blk.{n}.ffn_gate_inp.weight",), f"{at}.gate.weight"),
        Rule(
            ("blk.{n}.ffn_gate_exps.weight", "blk.{n}.ffn_up_exps.weight"), f"{at}.experts.gate_up_proj", stacked_pair
        ),
        Rule(("blk.{n}.ffn_down_exps.weight",), f"{at}.experts.down_proj"),
    ]


def stacked_pair(_config: Config, gate: Any, up: Any) -> Any:
    """Gates (expert, inner, width) before ups, along the inner axis."""
    import numpy as np

    return np.concatenate([gate, up], axis=1)


def less_one(_config: Config, weight: Any) -> Any:
    """The weight of a norm that multiplies by 1 + weight; llama.cpp stores the sum."""
    return weight - 1


def shifted(rules: Sequence[Rule]) -> list[Rule]:
    """The same rules, with the weights of norms stored as 1 + weight."""
    return [
        Rule(rule.sources, rule.target, less_one) if rule.sources[0].endswith("norm.weight") else rule for rule in rules
    ]
