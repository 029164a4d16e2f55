"""Checkpoint directories, Hugging Face's and Paddle's.

reading            find the files, map the weights into memory, match them to a model's parameters
writing            write `config.json` and `model.safetensors`, which transformers can load
conversion         convert any checkpoint to a safetensors directory (`ernie-m convert`)
names              the name of each weight in each format
weight_files       find the weight files, and read each format
wrappers           the prefixes and dictionaries that training programs put around the weights
stored_tensor      one weight as stored, before loading
safetensors_file   the safetensors format
paddle_pickle      Paddle's pickled weights, read by `pickle_machine` without executing the pickle
"""

from .reading import (
    Checkpoint,
    LoadReport,
    WeightsError,
    compare_names,
    load_parameters,
    open_checkpoint,
    read_config,
)
from .writing import save_checkpoint

__all__ = [
    "Checkpoint",
    "LoadReport",
    "WeightsError",
    "compare_names",
    "load_parameters",
    "open_checkpoint",
    "read_config",
    "save_checkpoint",
]
