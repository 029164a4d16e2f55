"""Checkpoint directories, Hugging Face's and Paddle's.

reading            find the files, map the weights into memory, match them with a model's parameters
writing            `config.json` and `model.safetensors`, as transformers loads them
conversion         any checkpoint to a safetensors directory (`ernie-m convert`)
names              what each format calls each weight
weight_files       which files hold the weights, and reading each kind of file
stored_tensor      one weight as it is stored, before it is loaded
safetensors_file   the safetensors format
paddle_pickle      Paddle's pickled weights, read without executing them, by `pickle_machine`
"""

from .reading import Checkpoint, LoadReport, compare_names, load_parameters, note_on_default_mask, open_checkpoint
from .writing import save_checkpoint

__all__ = [
    "Checkpoint",
    "LoadReport",
    "compare_names",
    "load_parameters",
    "note_on_default_mask",
    "open_checkpoint",
    "save_checkpoint",
]
