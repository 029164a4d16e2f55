"""Old module paths: importing one raises an ImportError that names the new one.

Version 0.2.0 split the flat packages into subpackages. Public names did not change; the modules that define them did.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import ModuleType

# Old module in `ernie_m.reference` -> where its content is now.
MOVED = {
    "checkpoint_names": "ernie_m.reference.checkpoint.names",
    "checkpoint_write": "ernie_m.reference.checkpoint.writing",
    "cli_convert": "ernie_m.reference.cli.convert",
    "cli_demo": "ernie_m.reference.cli.demo",
    "cli_encode": "ernie_m.reference.cli.encode",
    "cli_input": "ernie_m.reference.cli.input",
    "cli_inspect": "ernie_m.reference.cli.inspect",
    "cli_long": "ernie_m.reference.tasks.long_texts",
    "cli_model": "ernie_m.reference.cli.model",
    "cli_output": "ernie_m.reference.cli.output",
    "cli_table": "ernie_m.reference.cli.table",
    "cli_tokenize": "ernie_m.reference.cli.tokenize",
    "cli_trace": "ernie_m.reference.cli.trace",
    "cli_vectors": "ernie_m.reference.cli.vectors",
    "config_checks": "ernie_m.reference.config.checks",
    "config_files": "ernie_m.reference.config.files",
    "convert": "ernie_m.reference.checkpoint.conversion",
    "files": "ernie_m.tokenizer.files",
    "paddle_pickle": "ernie_m.reference.checkpoint.paddle_pickle",
    "pickle_machine": "ernie_m.reference.checkpoint.pickle_machine",
    "safetensors_file": "ernie_m.reference.checkpoint.safetensors_file",
    "stored_tensor": "ernie_m.reference.checkpoint.stored_tensor",
    "weight_files": "ernie_m.reference.checkpoint.weight_files",
}


class MovedModules:
    """A finder for `sys.meta_path` that finds no module, but knows where those of one package have moved."""

    def __init__(self, package: str, moved: Mapping[str, str]) -> None:
        self.moved = {f"{package}.{old}": new for old, new in moved.items()}

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """Raise ImportError for a module that has moved. Called last, after all other finders."""
        if name in self.moved:
            raise ImportError(f"{name} has moved to {self.moved[name]} (in version 0.2.0)", name=name)


def announce(package: str, moved: Mapping[str, str]) -> None:
    """Make importing an old module of `package` raise an ImportError that names the new one."""
    sys.meta_path.append(MovedModules(package, moved))
