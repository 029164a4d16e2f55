"""What training programs and other libraries put around a model's weights, and how it is removed.

    {"state_dict": {...}, "epoch": 3}   a training loop's checkpoint: the weights are one entry of several
    module.  _orig_mod.  model.         before every name, in any order: DataParallel, torch.compile, Lightning
    encoder.                            before the encoder's names, in place of `ernie_m.`: PaddleNLP's UIEM files of
                                        the time of `model_config.json`, and files converted from them

A prefix that only some weights have is an error: the others could belong to another model.

Source: torch 2.13 `DataParallel`, `OptimizedModule`, `FullyShardedDataParallel`, `swa_utils.AveragedModel`;
paddlenlp 2.3, `model_zoo/uie`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .names import PREFIX

# Entries under which training loops save the weights.
ENTRIES = ("state_dict", "model_state_dict", "model")
# Modules that wrap another one. No ERNIE-M module has these names, so they are dropped anywhere in a name; a program
# may also wrap only a part of the model.
MODULES = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
OUTERMOST = (*MODULES, "model")
# What a wrapper saves besides the weights.
COUNTERS = ("n_averaged",)
# The early UIEM's name for its encoder, and how the encoder's names continue.
EARLY_PREFIX = "encoder."
BARE = ("embeddings.", "encoder.layers.", "pooler.")
PARTS = ("embeddings.", "encoder.", "pooler.")


def weights_in(content: Any) -> Any:
    """The innermost dictionary of a training loop's checkpoint that holds the weights; anything else as it is.

    Raises ValueError if several entries could be meant.
    """
    while isinstance(content, Mapping):
        entries = [key for key in ENTRIES if isinstance(content.get(key), Mapping)]
        if len(entries) > 1:
            raise ValueError(f"expected the weights under one key, got dictionaries under {' and '.join(entries)}")
        if not entries:
            break
        content = content[entries[0]]
    return content


def plain_names(stored: Iterable[str]) -> dict[str, str]:  # -> plain name: stored name
    """The stored names by the names in `names.TABLE`, which have no prefix, or `ernie_m.` before the encoder's.

    Raises ValueError if only some names have a prefix, or if two names are the same without it.
    """
    stored = [name for name in stored if name not in COUNTERS]
    check_uniform({name: outer_prefix(name) for name in stored})
    plain = {name: without_wrappers(name) for name in stored}
    bases = {name: base for name in stored if (base := encoder_prefix(plain[name])) is not None}
    check_uniform(bases)
    if EARLY_PREFIX in bases.values():
        plain |= {name: PREFIX + plain[name].removeprefix(EARLY_PREFIX) for name in bases}
    found: dict[str, str] = {}
    for name, short in plain.items():
        if short in found:
            raise ValueError(f"{name} and {found[short]}: expected one weight {short}, got two")
        found[short] = name
    return found


def outer_prefix(name: str) -> str:
    """The wrappers before a name, such as `module._orig_mod.`; empty if there are none."""
    parts = name.split(".")
    count = next((i for i, part in enumerate(parts) if part not in OUTERMOST), 0)
    return "".join(f"{part}." for part in parts[:count])


def without_wrappers(name: str) -> str:
    """A name without wrappers, before it and in it."""
    rest = name.removeprefix(outer_prefix(name))
    return ".".join(part for part in rest.split(".") if part not in MODULES) or name


def encoder_prefix(name: str) -> str | None:
    """What stands before the encoder's own part of a name: `ernie_m.`, `encoder.` or nothing; None for other names."""
    for prefix in (PREFIX, EARLY_PREFIX):
        if name.startswith(prefix) and name.removeprefix(prefix).startswith(PARTS):
            return prefix
    return "" if name.startswith(BARE) else None


def check_uniform(prefixes: Mapping[str, str]) -> None:
    """Raise ValueError, with an example of each, if names have different prefixes."""
    groups: dict[str, list[str]] = {}
    for name, prefix in prefixes.items():
        groups.setdefault(prefix, []).append(name)
    if len(groups) > 1:
        listed = ", ".join(
            f"{f'prefix {prefix}' if prefix else 'no prefix'} in {len(names)} (such as {names[0]})"
            for prefix, names in sorted(groups.items())
        )
        raise ValueError(f"ambiguous: expected the same prefix before all weights, got {listed}")
