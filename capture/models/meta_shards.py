"""consolidated.NN.pth: model-parallel shards of Meta's layout, put together under transformers' names."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from attnlens.capture.models.account import grouped
from attnlens.capture.models.failure import one_line
from attnlens.capture.models.meta_params import MetaParams
from attnlens.schemas.errors import InputError, ModelError, Setting
from attnlens.schemas.metadata import LeftOut

if TYPE_CHECKING:
    import torch

SHARD = re.compile(r"consolidated\.(\d+)\.pth")
ROPE = re.compile(r"(.*\.)?rope\.freqs")  # computed from rope_theta
UNKNOWN = (
    ": they do not fit params.json; if the model is right without them: ",
    Setting("ignore_weights=[PATTERN]", "--ignore-weights PATTERN"),
)
FLOATS = ("float32", "bfloat16", "float16")


class TensorPlan(NamedTuple):
    """One tensor: transformers' name, its whole shape, the axis along which ranks split it (None: every rank has all
    of it), and the number of heads whose rotary rows are to be reordered (0: none).
    """

    name: str
    shape: tuple[int, ...]
    axis: int | None
    rotary_heads: int = 0


def find_shards(folder: Path) -> list[Path]:
    """The shards in order of their rank.

    Raises:
        ModelError: there are none, or one is missing between others.
    """
    found = {int(match[1]): path for path in folder.iterdir() if (match := SHARD.fullmatch(path.name))}
    if not found:
        raise ModelError(f"no weights in {folder}: expected consolidated.00.pth")
    missing = sorted(set(range(max(found) + 1)) - set(found))
    if missing:
        raise ModelError(f"{folder}: consolidated.{missing[0]:02d}.pth is missing of {max(found) + 1} shards or more")
    return [found[rank] for rank in sorted(found)]


def open_shards(paths: list[Path]) -> list[dict[str, torch.Tensor]]:
    """The tensors of each shard, mapped from disk and not read yet. Nothing but tensors is unpickled.

    Raises:
        ModelError: a file is damaged, cut short, or holds something else.
    """
    import torch

    shards = []
    for path in paths:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
        try:
            shard = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except pickle.UnpicklingError as error:
            raise ModelError(f"{path} is damaged, or holds more than tensors: {one_line(error, 120)}") from error
        except Exception as error:
            raise ModelError(f"{path} is damaged or cut short: {one_line(error, 120)}") from error
        if not isinstance(shard, dict) or not all(isinstance(value, torch.Tensor) for value in shard.values()):
            raise ModelError(f"{path} holds no dictionary of tensors")
        shards.append(dict(shard))
    return shards


def set_aside(
    tensors: dict[str, TensorPlan], shards: list[dict[str, torch.Tensor]], params: MetaParams, ignored: Sequence[str]
) -> tuple[LeftOut, ...]:
    """Take out of `shards` what the model may leave out: rotary frequencies, and what matches a pattern of `ignored`.

    Raises:
        ModelError: the frequencies are not those of params.json.
        InputError: a pattern matches no tensor outside of the plan.
    """
    reasons: dict[str, str] = {}
    for name in sorted({name for shard in shards for name in shard if name not in tensors}):
        asked = next((pattern for pattern in ignored if fnmatchcase(name, pattern)), None)
        if asked is not None:
            reasons[name] = f"ignored on request: {asked}"
        elif ROPE.fullmatch(name):
            _check_frequencies(name, shards, params)
            reasons[name] = "rotary frequencies, as the model computes them"
    for pattern in ignored:
        if not any(fnmatchcase(name, pattern) for name in reasons):
            raise InputError(Setting("ignore_weights"), f" {pattern} matches no tensor that the model leaves out")
    for shard in shards:
        for name in reasons:
            shard.pop(name, None)
    return grouped(reasons)


def _check_frequencies(name: str, shards: list[dict[str, torch.Tensor]], params: MetaParams) -> None:
    """theta^(-2 i / features), or the same as scaled for long texts; bfloat16 keeps 8 bits of them."""
    import torch

    plain = params.rope_theta ** -(torch.arange(0, params.features, 2).double() / params.features)
    for shard in shards:
        found = shard[name].double().flatten() if name in shard else plain
        if len(found) != len(plain) or not any(
            torch.allclose(found, expected, rtol=8e-3) for expected in (plain, _scaled(plain, params))
        ):
            raise ModelError(
                f"{name} holds other frequencies than params.json gives (rope_theta {params.rope_theta:g}): the files "
                f"do not belong together; if the model is right without it: ",
                Setting(f"ignore_weights={[name]}", f"--ignore-weights {name}"),
            )


def _scaled(plain: torch.Tensor, params: MetaParams) -> torch.Tensor:
    """Slow ones divided by the factor, fast ones kept, and between them a mixture: Meta's Llama 3.1 code."""
    low, high = params.rope_low_freq_factor, params.rope_high_freq_factor
    turns = params.rope_old_context_len * plain / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * plain + (1 - kept) * plain / params.rope_scaling_factor


def vocabulary_size(params: MetaParams, shards: list[dict[str, torch.Tensor]]) -> int:
    """Rows of the embedding: as params.json says, else as the tensors show."""
    if params.vocab_size > 0:
        return params.vocab_size
    if "output.weight" in shards[0]:
        return sum(shard["output.weight"].shape[0] for shard in shards if "output.weight" in shard)
    embedding = shards[0].get("tok_embeddings.weight")
    if embedding is None or embedding.ndim != 2:
        raise ModelError("the checkpoint has no tok_embeddings.weight (token, feature)")
    return embedding.shape[0] * (len(shards) if embedding.shape[1] == params.dim else 1)


def plan(params: MetaParams, vocabulary: int, *, tied: bool, embedding_axis: int) -> dict[str, TensorPlan]:
    """Every tensor of the checkpoint by Meta's name."""
    dim, hidden = params.dim, params.hidden
    queries, keys = params.n_heads * params.features, params.kv_heads * params.features
    tensors = {
        "tok_embeddings.weight": TensorPlan("model.embed_tokens.weight", (vocabulary, dim), embedding_axis),
        "norm.weight": TensorPlan("model.norm.weight", (dim,), None),
    }
    if not tied:
        tensors["output.weight"] = TensorPlan("lm_head.weight", (vocabulary, dim), 0)
    layer = {
        "attention.wq": TensorPlan("self_attn.q_proj", (queries, dim), 0, params.n_heads),
        "attention.wk": TensorPlan("self_attn.k_proj", (keys, dim), 0, params.kv_heads),
        "attention.wv": TensorPlan("self_attn.v_proj", (keys, dim), 0),
        "attention.wo": TensorPlan("self_attn.o_proj", (dim, queries), 1),
        "feed_forward.w1": TensorPlan("mlp.gate_proj", (hidden, dim), 0),
        "feed_forward.w2": TensorPlan("mlp.down_proj", (dim, hidden), 1),
        "feed_forward.w3": TensorPlan("mlp.up_proj", (hidden, dim), 0),
        "attention_norm": TensorPlan("input_layernorm", (dim,), None),
        "ffn_norm": TensorPlan("post_attention_layernorm", (dim,), None),
    }
    for index in range(params.n_layers):
        for name, tensor in layer.items():
            whole = tensor._replace(name=f"model.layers.{index}.{tensor.name}.weight")
            tensors[f"layers.{index}.{name}.weight"] = whole
    return tensors


def check_names(tensors: dict[str, TensorPlan], shards: list[dict[str, torch.Tensor]]) -> None:
    """Return if every shard holds the tensors of the plan and no others.

    Raises:
        ModelError: names up to three of them.
    """
    for rank, shard in enumerate(shards):
        for what, names, advice in (
            ("lacks", sorted(set(tensors) - set(shard)), ()),
            ("holds unknown tensors", sorted(set(shard) - set(tensors)), UNKNOWN),
        ):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                raise ModelError(f"consolidated.{rank:02d}.pth {what} {', '.join(names[:3])}{more}", *advice)


def check_ranks(tensors: dict[str, TensorPlan], shards: list[dict[str, torch.Tensor]]) -> None:
    """Return unless every split tensor of the first shard says that there were more ranks than there are files.

    Raises:
        ModelError: so many shards were found, of so many.
    """
    implied = set()
    for name, tensor in tensors.items():
        if name.startswith("layers.") and tensor.axis is not None:
            piece = shards[0][name]
            width = piece.shape[tensor.axis] if piece.ndim == len(tensor.shape) else 0
            implied.add(tensor.shape[tensor.axis] / width if width else 0)
    if len(implied) == 1 and (ranks := implied.pop()) > len(shards):
        raise ModelError(
            f"found {len(shards)} of {ranks:g} shards: every tensor of consolidated.00.pth is 1/{ranks:g} of what "
            f"params.json asks for, so consolidated.{len(shards):02d}.pth is missing"
        )


def merge(
    tensors: dict[str, TensorPlan], shards: list[dict[str, torch.Tensor]], dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    """The state dict for transformers. Tensors that need no work stay mapped from disk.

    Args:
        tensors: the plan, by Meta's names; `check_names` and `check_ranks` have passed.
        shards: one dictionary a rank.
        dtype: cast to it; None: as they are.

    Raises:
        ModelError: a tensor has another shape than params.json asks for, is no float, or ranks disagree.
    """
    import torch

    state = {}
    for name, tensor in tensors.items():
        pieces = [shard[name] for shard in shards]
        _check_pieces(name, tensor, pieces)
        whole = pieces[0] if tensor.axis is None or len(pieces) == 1 else torch.cat(pieces, tensor.axis)
        if dtype is not None:
            whole = whole.to(dtype)
        if tensor.rotary_heads:
            whole = _rotary_halves(whole, tensor.rotary_heads)
        state[tensor.name] = whole
    return state


def _check_pieces(name: str, tensor: TensorPlan, pieces: list[torch.Tensor]) -> None:
    import torch

    if str(pieces[0].dtype).removeprefix("torch.") not in FLOATS:
        raise ModelError(f"{name} is {pieces[0].dtype}, expected one of {', '.join(FLOATS)}")
    expected = list(tensor.shape)
    if tensor.axis is not None:
        expected[tensor.axis] //= len(pieces)
    for rank, piece in enumerate(pieces):
        if list(piece.shape) != expected:
            where = f" in consolidated.{rank:02d}.pth" if len(pieces) > 1 else ""
            raise ModelError(f"{name} has shape {tuple(piece.shape)}{where}, params.json asks for {tuple(expected)}")
    if tensor.axis is None and not all(torch.equal(piece, pieces[0]) for piece in pieces[1:]):
        raise ModelError(f"the shards disagree on {name}: they are not of one checkpoint")


def _rotary_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Meta rotates neighbouring rows (2i, 2i+1) of a head, transformers rows (i, i + features / 2)."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)
