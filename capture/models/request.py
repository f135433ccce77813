"""What a person asks of the loader, and what the loader hands back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlens.capture.origin import Origin
from attnlens.schemas.errors import InputError, Setting
from attnlens.schemas.metadata import Adapter, LeftOut

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZE = ("8bit", "4bit")
DEVICE = re.compile(r"(auto|cpu|cuda|mps|xpu)(:\d+)?")


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode with eager attention, and its tokenizer.

    `id` is a hub name, a built-in name or the last part of a path, never a local path. `revision` is a hub commit.
    `quantization` says what the weights went through, None for weights as they were trained. `tokenizer_id` names a
    tokenizer that does not come with the model. `left_out`: tensors of the checkpoint that the model does not use.
    """

    model: Any
    tokenizer: Any
    id: str
    revision: str | None = None
    quantization: dict[str, Any] | None = None
    tokenizer_id: str | None = None
    left_out: tuple[LeftOut, ...] = ()
    adapters: tuple[Adapter, ...] = ()

    def origin(self, label: str | None = None) -> Origin:
        """What a store records about it."""
        return Origin(
            id=self.id,
            revision=self.revision,
            quantization=self.quantization,
            tokenizer=self.tokenizer_id,
            left_out=self.left_out,
            adapters=self.adapters,
            label=label,
        )


@dataclass(frozen=True)
class Request:
    """The options of one load, checked for their spelling."""

    name: str
    dtype: str = "auto"
    device: str = "auto"
    quantize: str | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    tensor_parallel: bool = False
    tokenizer: str | None = None
    ignore_weights: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise InputError("the model's name is empty: give a hub name, a folder, a .gguf file or smollm2-135m")
        if self.dtype not in DTYPES:
            raise InputError(f"unknown dtype {self.dtype!r}: expected one of {', '.join(DTYPES)}")
        if self.quantize is not None and self.quantize not in QUANTIZE:
            raise InputError(f"unknown quantization {self.quantize!r}: expected one of {', '.join(QUANTIZE)}")
        if not DEVICE.fullmatch(self.device) or self.device.startswith("auto:"):
            raise InputError(f"unknown device {self.device!r}: expected auto, cpu, cuda or, for one of several, cuda:1")

        if self.tensor_parallel and self.quantize is not None:
            raise InputError(
                Setting("quantize"), " and ", Setting("tensor_parallel"), " were given; expected one of them"
            )
        if self.tensor_parallel and self.device != "auto":
            raise InputError(
                Setting("tensor_parallel"), f" spreads a model by itself: leave out the device {self.device!r}"
            )

    @property
    def path(self) -> Path:
        """The name read as a path of this machine."""
        return Path(self.name).expanduser()

    @property
    def short_name(self) -> str:
        """The last part of the path: what a store may say about a local model."""
        return self.path.resolve().name

    def torch_dtype(self) -> torch.dtype | None:
        """The dtype that was asked for, None for `auto`."""
        import torch

        return None if self.dtype == "auto" else getattr(torch, self.dtype)

    def refuse_revision(self, what: str) -> None:
        """Only hub models have revisions."""
        if self.revision is not None:
            raise InputError(f"{what} has no revisions: leave out the revision {self.revision!r}")
