"""Files in place of weights: what is refused, and that the message gives the reason and no bad advice.

Seen red: torch's own message passed on; `refuse_pointer` left out for each kind of file in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import random_model
from hypothesis import given
from hypothesis import strategies as st

import ernie_m.reference as ernie
from ernie_m.reference.checkpoint import open_checkpoint
from ernie_m.reference.checkpoint.conversion import TOKENIZER_FILES, convert
from ernie_m.reference.checkpoint.weight_files import ADVICE, torch_reason
from ernie_m.reference.cli.program import main

ADVISES = ("weights_only", "safe_globals", "trust", "allowlist", "\x1b")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"


class Hostile:
    """Opens a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        # `io` up to Python 3.11, `_io` from 3.12.
        (f"{open.__module__}.open", lambda torch, mark: {"w": Hostile(mark)}),
        ("torch.nn.modules.linear.Linear", lambda torch, mark: torch.nn.Linear(1, 1)),
        ("torch.nn.modules.linear.Linear", lambda torch, mark: {"model": torch.nn.Linear(1, 1)}),
        ("argparse.Namespace", lambda torch, mark: {"model": {}, "args": argparse.Namespace(lr=1)}),
        ("numpy._core.multiarray.scalar", lambda torch, mark: {"state_dict": {}, "loss": np.float32(1)}),
        # `pathlib._local` in Python 3.13.
        (f"{type(Path()).__module__}.{type(Path()).__name__}", lambda torch, mark: {"w": mark}),
    ],
)
def test_a_refused_torch_file_names_what_it_references(name: str, content: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: .bin files cannot be read")
    mark = tmp_path / "mark"
    random_model(dtype=np.float32).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(content(torch, mark), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError) as caught:
        ernie.ErnieMModel.from_pretrained(tmp_path)
    said = str(caught.value)
    # NumPy 2 renamed `numpy.core`.
    assert f"pytorch_model.bin: refused: it references {name}, which" in said.replace("numpy.core.", "numpy._core.")
    assert "nothing was executed" in said and not mark.exists()
    assert not any(word in said for word in ADVISES)


MESSAGES = [
    "Weights only load failed. Re-running `torch.load` with `weights_only` set to `False` will likely succeed, but it "
    "can result in arbitrary code execution.Do it only if you get the file from a trusted source. WeightsUnpickler "
    "error: Unsupported class {}",
    "Weights only load failed. In PyTorch 2.6, we changed the default value of `weights_only`.\nPlease file an issue "
    "with the following so that we can make `weights_only=True` compatible: WeightsUnpickler error: \n\nUnsupported "
    "operand {}\n\nCheck the documentation of torch.load to learn more about types accepted with weights_only https://x.",
    "PytorchStreamReader failed reading zip archive: {}. This is an internal miniz error.",
    "Unsupported operand {}",
]


@pytest.mark.parametrize("message", MESSAGES)
@given(detail=st.from_regex(r"[a-z0-9]{1,9}", fullmatch=True).filter(lambda word: not ADVICE.search(word)))
def test_torch_reason_keeps_the_reason_and_drops_the_advice(message: str, detail: str) -> None:
    """Messages of torch 2.0 to 2.13."""
    said = torch_reason(RuntimeError(message.format(detail)))
    assert said.startswith("not a torch weight file, or damaged: ") and "\n" not in said
    assert detail in said and not any(word in said for word in ADVISES)


@given(st.text(max_size=60), st.sampled_from([*ADVISES[:4], *MESSAGES]))
def test_torch_reason_of_any_message_advises_nothing(text: str, advice: str) -> None:
    said = torch_reason(ValueError(f"{text} {advice}. {text}"))
    assert not any(word in said for word in ADVISES[:4])
    assert torch_reason(EOFError()) == "not a torch weight file, or damaged: EOFError"


def saved_with(tensors: Any, folder: Path, **options: Any) -> Path:
    """A directory whose weights are a torch file with some tensors replaced."""
    torch = pytest.importorskip("torch", reason="torch is not installed: .bin files cannot be read")
    model = random_model(dtype=np.float32)
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    state = {name: torch.from_numpy(array) for name, array in model.state_dict().items()}
    torch.save(tensors(torch, state), folder / "pytorch_model.bin", **options)
    return folder


LARGE = 2**30  # numbers: far more memory than the test may take


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "older"])
@pytest.mark.parametrize(
    "tensors",
    [
        lambda torch, state: state | {"x": torch.ones(1).expand(LARGE)},
        lambda torch, state: state | {"x": torch.ones(1, dtype=torch.bfloat16).expand(2, LARGE)},
        lambda torch, state: state | {"x": torch.ones(4096).as_strided((LARGE, 8), (0, 1))},
        lambda torch, state: state | dict.fromkeys(map(str, range(100)), state["embeddings.word_embeddings.weight"])
        | {"y": torch.ones(2**16)} | {f"y{i}": torch.ones(1).expand(2**22) for i in range(9)},
    ],
    ids=["expanded", "bfloat16", "strided", "many"],
)  # fmt: skip
def test_a_file_that_describes_more_than_it_holds_is_refused(tensors: Any, options: Any, tmp_path: Path) -> None:
    folder = saved_with(tensors, tmp_path, **options)
    for read in (open_checkpoint, ernie.ErnieMModel.from_pretrained, lambda path: main(["inspect", str(path)])):
        tracemalloc.start()
        try:
            if read(folder) != 2:
                pytest.fail("not refused")
        except ValueError as error:
            assert "bin: expected at most 4 times the file's " in str(error)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20e6


def test_shared_and_expanded_weights_of_a_usual_size_load(tmp_path: Path) -> None:
    """Seen red: `view` on bfloat16 with a stride of 0."""

    def shared(torch: Any, state: Any) -> Any:
        one = "encoder.layers.0.norm1.weight"
        word = state["embeddings.word_embeddings.weight"]
        return state | {
            one: torch.ones(1, dtype=torch.bfloat16).expand(state[one].shape),
            "embeddings.word_embeddings.weight": word.t().contiguous().t(),
            "classifier.weight": word,
        }

    found = ernie.ErnieMModel.from_pretrained(saved_with(shared, tmp_path)).state_dict()
    expected = random_model(dtype=np.float32).state_dict() | {"encoder.layers.0.norm1.weight": np.ones(24, np.float32)}
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)

    def tied(torch: Any, state: Any) -> Any:
        return state | {f"{name}.{i}": tensor for name, tensor in state.items() for i in range(2)}

    assert len(open_checkpoint(saved_with(tied, tmp_path / "tied")).tensors) == 3 * len(expected)


def test_a_compressed_torch_file_is_refused(tmp_path: Path) -> None:
    """torch itself would unpack it, to any size."""
    folder = saved_with(lambda torch, state: state | {"x": torch.zeros(2**22)}, tmp_path)
    file = folder / "pytorch_model.bin"
    with zipfile.ZipFile(file) as archive:
        members = {item.filename: archive.read(item) for item in archive.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(
        ValueError, match=r"bin: expected an uncompressed archive, as torch writes, got [\d,]+ bytes for"
    ):
        open_checkpoint(folder)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"bin: not a torch weight file, or damaged: "):
        open_checkpoint(folder)


def test_a_paddle_file_that_uses_the_same_bytes_many_times_is_refused(tmp_path: Path) -> None:
    """A few bytes of a pickle mention an array again; each would be transposed or widened on its own."""
    random_model(dtype=np.float32).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    array = np.ones((64, 64), np.float32)
    (tmp_path / "model_state.pdparams").write_bytes(pickle.dumps({f"w{i}": array for i in range(100)}, protocol=4))
    with pytest.raises(
        ValueError, match=r"pdparams: expected at most 4 times the file's [\d,]+ bytes, got .* 1,638,400"
    ):
        open_checkpoint(tmp_path)


def with_weights(folder: Path, file: str) -> Path:
    """A directory with a configuration and, as weights, only a file of that name."""
    random_model(dtype=np.float32).save_pretrained(folder)
    (folder / "model.safetensors").rename(folder / file)
    return folder


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "file",
    [
        *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
        *("model_state.pdparams", "model-1.safetensors", "pytorch_model-1.bin", "config.json", "model_config.json"),
    ],
)
def test_a_pointer_in_place_of_a_file_is_named(file: str, ending: str, tmp_path: Path) -> None:
    folder = with_weights(tmp_path, "model.safetensors" if "config" in file else file.removesuffix(".json"))
    for kind in ("model.safetensors", "pytorch_model.bin"):
        if file == kind.replace(".", "-1."):
            (folder / f"{kind}.index.json").write_text(json.dumps({"weight_map": {"w": file}}))
    if file == "model_config.json":
        (folder / "config.json").unlink()
    (folder / file).write_bytes(POINTER.format("0" * 64, 1116280552).replace("\n", ending).encode())
    said = rf"{file}: this is a git-lfs pointer to a file of 1,116,280,552 bytes; fetch .* with `git lfs pull`$"
    for read in (ernie.ErnieMModel.from_pretrained, lambda source: convert(source, tmp_path / "new")):
        with pytest.raises(ValueError, match=said):
            read(folder)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", TOKENIZER_FILES)
def test_convert_does_not_copy_a_pointer(name: str, tmp_path: Path) -> None:
    random_model(dtype=np.float32).save_pretrained(tmp_path / "old")
    (tmp_path / "old" / name).write_text(POINTER.format("0" * 64, 7))
    with pytest.raises(ValueError, match=f"{name}: this is a git-lfs pointer to a file of 7 bytes"):
        convert(tmp_path / "old", tmp_path / "new")
    assert os.listdir(tmp_path) == ["old"]
