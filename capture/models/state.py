"""From a configuration and tensors in memory to a model on its device, quantized if asked."""

from __future__ import annotations

import inspect
from typing import Any

from attnlens.capture.models.account import account
from attnlens.capture.models.device import device_map
from attnlens.capture.models.quantize import bitsandbytes_config
from attnlens.capture.models.request import Request
from attnlens.capture.models.watch import watching


def load_options(request: Request, checkpoint_dtype: Any) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained` that every source shares."""
    options: dict[str, Any] = {
        "attn_implementation": "eager",  # the capture overrides this entry, see docs/design.md
        "device_map": device_map(request.device, explicit=request.quantize is not None),
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # they are reported then, and `account` names them
    }
    if request.tensor_parallel:
        del options["device_map"]
        options |= _tensor_parallel()
    if request.quantize is not None:
        options["quantization_config"] = bitsandbytes_config(request, checkpoint_dtype)
    return options


def _tensor_parallel() -> dict[str, Any]:
    """What tells `from_pretrained` to split the model over all processes, by the plan that its class brings."""
    try:
        from transformers.distributed import DistributedConfig
    except ImportError:
        return {"tp_plan": "auto"}
    if "tp_plan" not in inspect.signature(DistributedConfig).parameters:  # older releases
        return {"tp_plan": "auto"}
    return {"distributed_config": DistributedConfig(tp_plan="auto")}


def model_from_state(request: Request, config: Any, state: dict[str, Any], checkpoint_dtype: Any) -> Any:
    """The causal LM of `config` with the tensors of `state`, under the names transformers gives them.

    Tensors that already have the right dtype and device are used, not copied.

    Raises:
        ModelError: a tensor of `state` is not used, or a weight is not in it.
    """
    from transformers import AutoModelForCausalLM

    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    options = load_options(request, checkpoint_dtype)
    dtype = request.torch_dtype() or checkpoint_dtype
    with watching() as watch:
        model, _ = model_class.from_pretrained(None, config=config, state_dict=state, dtype=dtype, **options)
    account(request.short_name, watch)
    return model
