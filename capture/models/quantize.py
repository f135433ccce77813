"""`--quantize`: 8-bit and 4-bit weights by bitsandbytes, on GPU and CPU, and what the store says about them."""

from __future__ import annotations

import logging
import warnings
from importlib.metadata import version
from typing import Any

from attnlens.capture.adapters import plain_modules
from attnlens.capture.extra import require_package
from attnlens.capture.models.request import Request
from attnlens.capture.models.watch import Watch
from attnlens.schemas.errors import ModelError

FOUR_BIT_TYPE = "nf4"
OUTLIER_THRESHOLD = 6.0


def require_bitsandbytes(request: Request) -> None:
    """Return if nothing is to be quantized, or if it can be.

    Raises:
        MissingExtraError: bitsandbytes or accelerate is not installed.
    """
    if request.quantize is not None:
        require_package("bitsandbytes", f"--quantize {request.quantize}")
        require_package("accelerate", f"--quantize {request.quantize}")


def bitsandbytes_config(request: Request, checkpoint_dtype: Any) -> Any:
    """The configuration for `from_pretrained`. `checkpoint_dtype` computes unless a dtype was asked for."""
    from transformers import BitsAndBytesConfig

    if request.quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=OUTLIER_THRESHOLD)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=FOUR_BIT_TYPE,
        bnb_4bit_compute_dtype=request.torch_dtype() or checkpoint_dtype,
    )


def settle(model: Any) -> None:
    """Stop bitsandbytes from repacking 4-bit weights at their first use on some CPUs, and from talking.

    Repacked weights have scales rounded to bfloat16, so logits would depend on the processor; and layers whose rows are
    no multiple of 32 fail.
    """
    if any(type(module).__module__.startswith("bitsandbytes.") for module in model.modules()):
        # It repeats lines at every product, long after loading; up to some 0.49 as warnings.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        for said in ("MatMul8bitLt: inputs will be cast", "Some matrices hidden dimension is not"):
            warnings.filterwarnings("ignore", said, UserWarning)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def describe(request: Request, model: Any) -> dict[str, Any]:
    """What the metadata say about a model that bitsandbytes quantized.

    Raises:
        ModelError: nothing was quantized.
    """
    import bitsandbytes
    from torch import nn

    kinds = {"8bit": bitsandbytes.nn.Linear8bitLt, "4bit": bitsandbytes.nn.Linear4bit}
    quantized_kind = kinds[str(request.quantize)]
    linear = {path: module for path, module in plain_modules(model) if isinstance(module, nn.Linear)}
    quantized = [path for path, module in linear.items() if isinstance(module, quantized_kind)]
    if not quantized:
        raise ModelError(f"{type(model).__name__} has no linear layer that bitsandbytes could quantize")
    described = {
        "version": version("bitsandbytes"),
        "quantized_modules": len(quantized),
        "kept_modules": sorted(set(linear) - set(quantized)),
    }
    if request.quantize == "8bit":
        # LLM.int8(): inputs are rounded to float16, and to int8 where they are below the threshold.
        int8 = {"method": "bitsandbytes", "bits": 8, "type": "int8", "compute_dtype": "float16"}
        return {**int8, "threshold": OUTLIER_THRESHOLD, **described}
    compute = str(linear[quantized[0]].compute_dtype).removeprefix("torch.")
    nf4 = {"method": "bitsandbytes", "bits": 4, "type": FOUR_BIT_TYPE, "compute_dtype": compute}
    return {**nf4, "double_quantized": False, **described}


def declared_quantization(config: Any) -> Any:
    """The quantization config of a checkpoint, its own or that of its text part; None for plain weights."""
    for part in (config, config.get_text_config(decoder=True)):
        for name in ("quantization_config", "compression_config"):
            if (given := getattr(part, name, None)) is not None:
                return given
    return None


def require_known(name: str, given: Any) -> None:
    """Return if transformers knows the method of the quantization config `given`; one that it does not, it skips.

    Raises:
        ModelError: names the method.
    """
    from transformers import __version__
    from transformers.quantizers.auto import AutoHfQuantizer

    config = given if isinstance(given, dict) else given.to_dict()
    try:
        known = AutoHfQuantizer.supports_quant_method(config)
    except ValueError:
        known = False
    if not known:
        method = config.get("quant_method") or "a method that it does not name"
        if method == "bitsandbytes":
            method = "bitsandbytes with neither load_in_4bit nor load_in_8bit"
        raise ModelError(
            f"the weights of {name} are quantized by {method}, which transformers {__version__} does not know: fetch "
            "the unquantized checkpoint, or one in another format"
        )


def require_unpacked(name: str, given: Any, watch: Watch) -> None:
    """Return if transformers applied the quantization config `given` to the weights.

    Raises:
        ModelError: it did not.
    """
    if not watch.seen or watch.seen[0].quantizer is None:
        raise ModelError(
            f"{name} has a quantization_config ({describe_checkpoint(given)['method']}) that transformers did not "
            "apply: fetch the unquantized checkpoint"
        )
    for path, module in plain_modules(watch.seen[0].model):
        if type(module).__module__.startswith("bitsandbytes.nn") and (problem := _unpackable(module)):
            raise ModelError(
                f"the config of {name} says that bitsandbytes quantized it, and {path}.weight {problem}: the "
                "checkpoint does not fit its config"
            )


def _unpackable(module: Any) -> str | None:
    """Why a layer of bitsandbytes cannot have come from a quantized checkpoint; it would fail, or compute nonsense."""
    import bitsandbytes

    weight = module.weight
    if isinstance(module, bitsandbytes.nn.Linear8bitLt):
        return None if str(weight.dtype) == "torch.int8" else "is stored as plain numbers"
    if not isinstance(module, bitsandbytes.nn.Linear4bit):
        return None
    state = getattr(weight, "quant_state", None)
    if state is None:
        return "is stored as plain numbers"
    if not state.nested and not state.absmax.is_floating_point():
        return "lacks the scales of its scales (nested_absmax)"
    return None


def describe_checkpoint(given: Any) -> dict[str, Any]:
    """What the metadata say about a checkpoint quantized before we saw it. `given`: its quantization config."""
    config = given if isinstance(given, dict) else given.to_dict()
    method = config.get("quant_method", "unknown")
    plain = {key: value for key, value in config.items() if isinstance(value, (str, int, float, bool, type(None)))}
    return {**plain, "method": str(getattr(method, "value", method)), "in_checkpoint": True}
