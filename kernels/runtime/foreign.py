"""Arguments that transformers users pass: translated where we have an equivalent, otherwise rejected with advice."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from ernie_m.reference.array import Array
from ernie_m.reference.checkpoint.names import HUGGINGFACE, ON_TOP, PREFIX, file_name
from ernie_m.reference.config import ErnieMConfig
from ernie_m.reference.config.files import CALL_DEFAULTS
from ernie_m.reference.parameters import check_shapes

# What to do in place of an argument of transformers' `from_pretrained` or `save_pretrained`.
ADVICE = {
    "attn_implementation": "the kernels are used wherever they can be",
    "cache_dir": "set HF_HOME",
    "add_pooling_layer": "set the pooler of the loaded model to None",
    "config": "pass changed fields by name, such as num_labels=3",
    "force_download": "remove the repository from the cache of huggingface_hub",
    "load_in_4bit": "quantise the loaded model, for instance with torch.ao.quantization.quantize_dynamic",
    "load_in_8bit": "quantise the loaded model, for instance with torch.ao.quantization.quantize_dynamic",
    "local_files_only": "set HF_HUB_OFFLINE=1",
    "max_shard_size": "one file, model.safetensors, is written",
    "output_attentions": "pass output_attentions=True to the call",
    "output_hidden_states": "pass output_hidden_states=True to the call",
    "output_loading_info": "pass strict=False, which returns the model and a report",
    "push_to_hub": "nothing is uploaded",
    "quantization_config": "quantise the loaded model, for instance with torch.ao.quantization.quantize_dynamic",
    "return_dict": "pass return_dict=False to the call for a tuple",
    "safe_serialization": "model.safetensors is always written; torch.save(model.state_dict(), file) writes a .bin",
    "save_function": "model.safetensors is always written",
    "state_dict": "load the model, then call load_state_dict",
    "subfolder": "append it to the directory",
    "token": "set HF_TOKEN",
    "trust_remote_code": "checkpoints never run code",
    "use_auth_token": "set HF_TOKEN",
    "use_safetensors": "model.safetensors is preferred where it exists",
    "variant": "name the directory that holds the files",
}
# Values that ask for what happens anyway.
HARMLESS = {
    **{name: (usual,) for name, usual in CALL_DEFAULTS.items()},
    "add_pooling_layer": (True,),
    "attn_implementation": ("eager", "sdpa"),
    "force_download": (False,),
    "load_in_4bit": (False,),
    "load_in_8bit": (False,),
    "local_files_only": (False,),
    "output_loading_info": (False,),
    "push_to_hub": (False,),
    "safe_serialization": (True,),
    "subfolder": ("",),
    "trust_remote_code": (False,),
    "use_safetensors": (True,),
}


def local_directory(
    directory: str | PathLike[str], revision: str | None, options: dict[str, Any]
) -> str | PathLike[str]:
    """The directory that `from_pretrained` reads (see `ernie_m.tokenizer.hub`). Refuses options as `refuse_foreign`."""
    from ernie_m.tokenizer import hub

    if not hub.is_repository(directory):
        # Nothing is downloaded, as it asks.
        options.pop("local_files_only", None)
    refuse_foreign("from_pretrained", options)
    return hub.directory(directory, revision)


def refuse_foreign(call: str, options: dict[str, Any]) -> None:
    """Drop transformers' arguments from `options` where they ask for what happens anyway; refuse the others.

    Raises TypeError that says what to do in place of such an argument.
    """
    for name in [name for name in options if name in ADVICE]:
        # `save_function`, which loops with accelerate pass, would write the same weights in another format.
        harmless = options[name] is None or name == "save_function" or options[name] in HARMLESS.get(name, ())
        if not harmless:
            raise TypeError(f"{call}: {name}={options[name]!r:.80} is not supported: {ADVICE[name]}")
        del options[name]


def check_config(config: Any) -> None:
    """Raise TypeError unless a model is built from our own configuration."""
    if not isinstance(config, ErnieMConfig):
        theirs = f"{type(config).__module__}.{type(config).__name__}"
        convert = ": ErnieMConfig.from_dict(config.to_dict()) converts it" if hasattr(config, "to_dict") else ""
        raise TypeError(f"config: expected ernie_m.reference.ErnieMConfig, got {theirs}{convert}")


def check_saved(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return `weights`. Raises TypeError unless they are floats in tensors, not quantised; ValueError if they are
    elsewhere, or adapters attached."""
    if not isinstance(weights, Mapping):
        raise TypeError(f"state_dict: expected tensors by name, got {type(weights).__name__}")
    for name, x in weights.items():
        module, packed, _ = name.partition("._packed_params")
        if packed or (isinstance(x, Tensor) and x.is_quantized):
            expected = "expected floating-point weights, got a quantised module: use the model from before that"
            raise TypeError(f"{module}: {expected}; torch.save(model.state_dict(), file) keeps this one's")
    for name, x in weights.items():
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"state_dict: {name}: expected a tensor of floats, got {got}")
        if x.device.type == "meta":
            raise ValueError(f"{name}: expected values, got none: pass state_dict= with those offloaded")
        if {"base_layer", "parametrizations"} & set(name.split(".")) or name.endswith(("_orig", "_mask")):
            raise ValueError(f"{name}: expected the name of a weight: merge adapters and remove pruning before saving")
    return weights


def check_complete(arrays: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], pooler: bool) -> None:
    """Raise ValueError, naming a weight, unless there are arrays of these shapes and no others. pooler: whether the
    model has one; a checkpoint may lack it."""
    wanted = {path: shape for path, shape in shapes.items() if pooler or not path.startswith("pooler.")}
    prefix = PREFIX if any(path.startswith(ON_TOP) for path in wanted) else ""
    missing = [file_name(path, HUGGINGFACE, prefix) for path in wanted if path not in arrays]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"state_dict: expected all weights of the model, got none for {missing[0]}{more}")
    check_shapes(arrays, wanted)


def one_device(device: Any, device_map: Any) -> Any:
    """The device that either argument names; None for torch's default. Raises ValueError for more than one."""
    if device_map is None:
        return device
    if device is not None:
        raise ValueError(f"device, device_map: expected one of the two, got {device!r} and {device_map!r}")
    if isinstance(device_map, Mapping):
        devices = {str(place): place for place in device_map.values()}
        if len(devices) != 1 or "disk" in devices:
            raise ValueError(f"device_map: expected one device for the whole model, got {device_map!r}")
        device_map = next(iter(devices.values()))
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        if torch.cuda.device_count() > 1:
            raise ValueError(f"device_map: expected one device, such as 'cuda:0', got {device_map!r}")
        return "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device("cuda", device_map) if isinstance(device_map, int) else device_map
