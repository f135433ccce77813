"""One GGUF file: where it lies, its keys and its tensors. Nothing is interpreted here."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnlens.capture.models.failure import one_line
from attnlens.schemas.errors import InputError, ModelError
from attnlens.schemas.nearest import did_you_mean

SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


def find_file(path: Path) -> Path:
    """The one GGUF file at `path`.

    Raises:
        ModelError: no such file, or one of several parts.
        InputError: the folder holds several.
    """
    if not path.is_dir():
        if not path.is_file():
            beside = [one.name for one in sorted(path.parent.glob("*.gguf"))]
            before = "" if path.parent == Path() else f"{path.parent}/"
            raise ModelError(f"no such file: {path}{did_you_mean(path.name, beside, before=before)}")
        found = [path]
    else:
        found = sorted(path.glob("*.gguf"))
    if SPLIT.search(found[0].name):
        raise ModelError(
            f"{found[0]} is one part of a split GGUF file: merge the parts first (llama-gguf-split --merge)"
        )
    if len(found) > 1:
        raise InputError(
            f"{path} holds {len(found)} GGUF files, give one of them: {', '.join(f.name for f in found[:6])}"
        )
    return found[0]


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself. `fields` and `tensors` are the reader's own, by name; tensors are located, not
    read. `types`: how many tensors of each ggml type.
    """

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, Any]
    types: dict[str, int]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the model's architecture, which is also the namespace of its keys.

        Raises:
            ModelError: the file does not say.
        """
        field = self.fields.get("general.architecture")
        if field is None:
            raise ModelError(f"{self.path.name} has no key general.architecture: it is no model, or is damaged")
        return str(field.contents())

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor in torch's order of axes.

        Raises:
            ModelError: there is no such tensor.
        """
        if name not in self.tensors:
            raise ModelError(f"{self.path.name} has no tensor {name}: it is no whole {self.architecture} model")
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def read(self, name: str) -> Any:
        """One tensor, dequantized: a float32 numpy array.

        Raises:
            ModelError: its type is not known to the package gguf.
        """
        from gguf import dequantize

        tensor = self.tensors[name]
        try:
            return dequantize(tensor.data, tensor.tensor_type).reshape(self.shape(name))
        except NotImplementedError as error:
            raise ModelError(
                f"{self.path.name}: the tensor {name} is stored as {tensor.tensor_type.name}, which the installed "
                "package gguf cannot dequantize: update it, or quantize the model to another type"
            ) from error


def read_header(path: Path) -> Header:
    """Read it; the tensors are located, not read.

    Raises:
        ModelError: not a GGUF file, damaged or cut short.
    """
    from gguf import GGUFReader

    if not path.is_file():  # a pipe would be waited for
        raise ModelError(f"{path} is not a GGUF file: it is no plain file")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file: it does not begin with GGUF")
    try:
        reader = GGUFReader(path)
    except Exception as error:  # it reads a memory map without looking where that ends
        raise ModelError(f"{path} is damaged or cut short: {one_line(error)}") from error
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    return Header(path, dict(reader.fields), tensors, dict(Counter(t.tensor_type.name for t in reader.tensors)))
