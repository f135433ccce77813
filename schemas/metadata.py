"""Metadata of a store and of a capture: what sits under the attribute key `attnlens`.

Unknown keys are kept and ignored, so that a later writer of the same format version may add some.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from attnlens.schemas.version import FORMAT_VERSION

Status = Literal["planned", "partial", "complete", "failed"]
LayerKind = Literal["full", "sliding", "chunked", "none"]
Mode = Literal["dense", "qk"]
ModelDType = Literal["float32", "float16", "bfloat16"]
LABEL_LIMIT = 200
"""Characters of the longest label."""
BEGINNING = 256
"""Characters of a text that the store's index has."""


class Record(BaseModel):
    """Base of all metadata: frozen, strict about what it knows, silent about what it does not."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _within_64_bits(self) -> Self:
        """Refuse whole numbers that numpy cannot hold: Python's have no end."""
        for name in type(self).model_fields:
            if _is_beyond(getattr(self, name)):
                raise ValueError(f"{name} holds a whole number of more than 64 bits")
        return self


def _is_beyond(value: object) -> bool:
    """Whether a number, or one in lists of numbers, is of more than 64 bits."""
    if isinstance(value, int):
        return not -(1 << 63) <= value < 1 << 64
    if not isinstance(value, list | tuple) or not value or not isinstance(value[0], int | list | tuple):
        return False
    return any(map(_is_beyond, value))


class LayerInfo(Record):
    """One row of the per-layer table: what the attention of this layer is.

    A weight is softmax over keys of softcap · tanh(scaling · q·k / softcap), without the tanh where there is no
    soft-cap, over the keys that `kind` and `window` let the query see. `sink_values` (head) are further scores in the
    softmax that no key has. `key_source` is the layer whose keys are used, where a layer has none of its own.
    """

    index: int = Field(ge=0)
    path: str
    kind: LayerKind
    n_head: int = Field(ge=0)
    n_kv_head: int = Field(ge=0)
    key_features: int = Field(ge=0)
    value_features: int = Field(ge=0)
    window: int | None = Field(default=None, ge=1)
    scaling: float | None = None
    softcap: float | None = None
    sinks: bool = False
    sink_values: list[float] | None = None
    key_source: int | None = Field(default=None, ge=0)


class LeftOut(Record):
    """Tensors of a checkpoint that the model does not use. `tensors`: a name, `*` for numbers; `count`: how many."""

    tensors: str
    count: int = Field(ge=1)
    reason: str


class Adapter(Record):
    """An adapter in the model. `type` as PEFT names it (LORA …), `digest`: sha256 over its weights."""

    name: str
    type: str
    rank: int | None = None
    scaling: float | None = None
    targets: list[str] = Field(default_factory=list)
    active: bool = True
    merged: bool = False
    digest: str


class Hook(Record):
    """What somebody put on a module that may change what it computes.

    `module`: its path, "" for the whole model, `*` for the numbers in the paths of `count` modules, `*` alone for every
    module. `kind`: `forward` and `forward_pre` hooks, `replaced` for another forward, `parametrization`.
    `function`: name of what runs.
    """

    module: str
    kind: str
    function: str
    count: int = Field(default=1, ge=1)


class ModelInfo(Record):
    """The model that ran. `id` is a hub name, a built-in name or the last part of a folder, never a local path.

    `tokenizer`: its name, where it does not come with the model. `left_out`: tensors of the checkpoint that the model
    does not use. `adapters` and `hooks`: what changed the model since it was loaded.
    """

    id: str
    revision: str | None = None
    architecture: str
    config: dict[str, Any]
    dtype: str
    quantization: dict[str, Any] | None = None
    n_layer: int = Field(ge=1)
    n_head: int = Field(ge=1)
    vocabulary_size: int = Field(ge=1)
    layers: list[LayerInfo]
    tokenizer: str | None = None
    left_out: list[LeftOut] = Field(default_factory=list)
    adapters: list[Adapter] = Field(default_factory=list)
    hooks: list[Hook] = Field(default_factory=list)


class LensInfo(Record):
    """How residuals were read: modules called, then logits × scale, then soft-cap · tanh(logits / soft-cap).

    `source`: of a tuned lens, the folder that it came from (its last part), or its hf:// name. Its translators are
    applied before.
    """

    name: str
    source: str | None = None
    modules: list[str]
    scale: float = 1.0
    softcap: float | None = None
    hash: str
    top_k: int = Field(ge=1)


class ResidualInfo(Record):
    """The array `residual`: features of the stream, and the model's dtype of it."""

    n_feature: int = Field(ge=1)
    dtype: Literal["float32", "float16", "bfloat16"]


class Sampling(Record):
    """How the generated tokens came to be. `forced`: they were given, not generated.

    `generation_config`: the settings of the model's own that held; `overrides`: those that the user changed.
    """

    forced: bool
    max_new_tokens: int = Field(ge=0)
    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    seed: int
    generation_config: dict[str, Any] = Field(default_factory=dict)
    overrides: dict[str, Any] = Field(default_factory=dict)


class SelfCheck(Record):
    """One check made while capturing: what was measured, against which limit."""

    name: str
    passed: bool
    value: float | None = None
    limit: float | None = None
    detail: str = ""


class CropInfo(Record):
    """What a store lacks that its original had. Runs are [start, stop) in the numbering of both; None: all is there.

    `dropped` names arrays. `redacted`: tokens of which no trace was to stay. `errors`: array → the most by which a
    weight differs from the original's. `origin`: digest of the original, if the
    default pictures of what is there are still those of the original.
    """

    tokens: list[list[int]] | None = None
    layers: list[list[int]] | None = None
    heads: list[list[int]] | None = None
    dropped: list[str] = Field(default_factory=list)
    redacted: list[list[int]] = Field(default_factory=list)
    errors: dict[str, float] = Field(default_factory=dict)
    origin: str | None = None


class CaptureMetadata(Record):
    """Everything about one capture that is not an array.

    `n_token` is T, the length of the timeline known so far; `n_fed` of these tokens went through the model, and
    `committed` ≤ n_fed rows are safe in every array. While the capture is not complete its arrays may be longer than T.
    `lens` is the first lens, `lenses` are further ones; they read the tokens from number `lens_first` on. `evidence`
    names the arrays beyond the usual that are there, `absent` those that are not, with the reason.
    A failed capture may have no token at all: its prompt could not be made into any.
    `label` tells captures of one model apart. `tools` went to the chat template; `continued`: the last message was
    continued, not answered. `seam` says how a given completion was joined to the prompt: `clean` (the tokens of the
    prompt begin those of the whole text), `prompt` or `whole`. `notes` are remarks that a reader should know.
    """

    id: str
    prompt_id: str | None = None
    status: Status
    committed: int = Field(ge=0)
    n_prompt: int = Field(ge=0)
    n_token: int = Field(ge=0)
    n_fed: int = Field(ge=0)
    prompt: str
    completion: str = ""
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    continued: bool = False
    seam: Literal["clean", "prompt", "whole"] | None = None
    label: str | None = None
    notes: list[str] = Field(default_factory=list)
    attention: Mode | None
    attention_absent: str | None = None
    attention_dtype: ModelDType | None = None
    attention_choice: str | None = None
    model: ModelInfo
    lens: LensInfo | None
    lens_absent: str | None = None
    lenses: list[LensInfo] = Field(default_factory=list)
    lens_first: int = Field(default=0, ge=0)
    evidence: list[str] = Field(default_factory=list)
    absent: dict[str, str] = Field(default_factory=dict)
    tracked: list[int] = Field(default_factory=list)
    residual: ResidualInfo | None = None
    crop: CropInfo | None = None
    sampling: Sampling
    versions: dict[str, str]
    device: str
    created: str
    timings: dict[str, float] = Field(default_factory=dict)
    self_checks: list[SelfCheck] = Field(default_factory=list)
    error: str | None = None
    manifest: str | None = None
    front: str | None = None
    digest: str | None = None


class IndexEntry(Record):
    """One line of the store's derived index, so that a list of captures costs one read.

    `prompt` and `completion`: the first `BEGINNING` characters, the last one `…` where there are more. `model`: its id,
    None in an entry of an earlier writer, which said nothing of `label` and `changes` either. `changes`: what changed
    the model, as its name says it.
    """

    id: str
    prompt_id: str | None = None
    status: Status
    n_prompt: int = Field(ge=0)
    n_token: int = Field(ge=0)
    prompt: str
    completion: str = ""
    digest: str | None = None
    model: str | None = None
    label: str | None = None
    changes: str = ""


class BatchPrompt(Record):
    """One prompt of a batch: the capture that it becomes, its own id, and a hash over all that was asked."""

    capture: str
    prompt_id: str
    sha256: str


class Batch(Record):
    """Prompts that were given together, in order. `settings`: what they share, the model included."""

    settings: dict[str, Any] = Field(default_factory=dict)
    prompts: list[BatchPrompt]
    run: str | None = None


class ListFiles(Record):
    """A list that is kept in arrays. `folder`: the name of their group; `files`: path in it → sha256, of every file."""

    folder: str
    files: dict[str, str]


class StoreLists(Record):
    """The lists of a store that are too long for its zarr.json."""

    index: ListFiles | None = None
    batches: ListFiles | None = None


class StoreMetadata(Record):
    """The store itself. Each of its lists is here, or in arrays that `lists` names.

    An index without an entry of a capture says nothing of it.
    """

    format: Literal["attnlens"] = "attnlens"
    version: int = FORMAT_VERSION
    created: str
    writer: str
    planned: list[str]
    batches: list[Batch] = Field(default_factory=list)
    index: list[IndexEntry] | None = None
    lists: StoreLists | None = None
    digest: str | None = None
