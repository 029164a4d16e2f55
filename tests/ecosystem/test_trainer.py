"""transformers' Trainer takes the models as they are: trains, evaluates, predicts, saves, resumes.

That of release 4.40.2 in `make test`, and of release 5 in `make test-latest`, where some options have other names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ecosystem_helpers import batch, close, copied, small
from torch_models import CLASSES

from ernie_m.kernels import (
    ErnieMForInformationExtraction,
    ErnieMForQuestionAnswering,
    ErnieMForSequenceClassification,
    ErnieMForTokenClassification,
)
from ernie_m.reference import demo
from ernie_m.tokenizer import ErnieMTokenizer

pytest.importorskip("accelerate", reason="accelerate is not installed; the Trainer needs it")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

TASKS = (ErnieMForSequenceClassification, ErnieMForTokenClassification, ErnieMForQuestionAnswering)
LATEST = int(transformers.__version__.split(".")[0]) >= 5
BY_LENGTH = {"train_sampling_strategy": "group_by_length"} if LATEST else {"group_by_length": True}
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


@pytest.fixture(autouse=True)
def _as_with_an_older_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    if not LATEST:
        # torch 2.6 and later read only weights by default; release 4 stores the state of random generators beside them.
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, PartialState, GradientState):
        state._shared_state.clear()


def rows(cls: Any, n: int = 8, targets: bool = True) -> list[dict[str, Any]]:
    """A data set."""
    given = batch(cls, B=n)
    kept = given if targets else {key: x for key, x in given.items() if "input" in key or "mask" in key}
    return [{key: x[i] for key, x in kept.items()} for i in range(n)]


def trainer(model: Any, folder: Path, data: Any = None, **options: Any) -> Any:
    """A Trainer whose epoch has four steps and that saves after each second one."""
    defaults = {
        "per_device_train_batch_size": 2,
        "num_train_epochs": 2,
        "learning_rate": 0.01,
        "save_steps": 2,
        "logging_steps": 1,
        "seed": 3,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    arguments = transformers.TrainingArguments(output_dir=str(folder), **{**defaults, **options})
    data = rows(type(model)) if data is None else data
    return transformers.Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)


@pytest.mark.parametrize("cls", TASKS)
def test_it_trains_evaluates_and_predicts(cls: Any, tmp_path: Path) -> None:
    """The loss falls; predictions are the model's own logits, with targets and without."""
    model = small(cls, np.float32)
    loop = trainer(model, tmp_path, save_strategy="no", num_train_epochs=5)
    before = loop.evaluate()["eval_loss"]
    result = loop.train()
    after = loop.evaluate()["eval_loss"]
    assert result.global_step == 20 and after < before
    prediction = loop.predict(rows(cls))
    assert "test_loss" in prediction.metrics and prediction.label_ids is not None
    bare = loop.predict(rows(cls, targets=False))
    assert "test_loss" not in bare.metrics and bare.label_ids is None
    with torch.no_grad():
        out = model.eval()(**batch(cls, B=8))
    for found in (prediction.predictions, bare.predictions):
        parts = found if isinstance(found, tuple) else (found,)
        wanted = [x for name, x in out.items() if name != "loss"]
        for part, x in zip(parts, wanted, strict=True):
            close(torch.as_tensor(part), x, 1e-5)


@pytest.mark.parametrize("cls", TASKS)
def test_its_metrics_see_logits_and_targets(cls: Any, tmp_path: Path) -> None:
    seen = []
    loop = trainer(small(cls, np.float32), tmp_path)
    loop.compute_metrics = lambda prediction: seen.append(prediction) or {"rows": len(prediction.predictions[0])}
    assert "eval_rows" in loop.evaluate()
    count = 2 if cls is ErnieMForQuestionAnswering else 1
    for part in (seen[0].predictions, seen[0].label_ids):
        assert len(part if isinstance(part, tuple) else (part,)) == count


@pytest.mark.parametrize("cls", TASKS)
def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(cls: Any, tmp_path: Path) -> None:
    """Bit for bit, with dropout: the checkpoint in the middle of the second epoch holds all that is needed."""
    whole = small(cls, np.float32, **DROPOUT)
    trainer(whole, tmp_path).train()
    wanted = copied(whole.state_dict())
    assert (tmp_path / "checkpoint-6" / "model.safetensors").exists()
    resumed = small(cls, np.float32, seed=4, **DROPOUT)
    trainer(resumed, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    found = resumed.state_dict()
    assert not [name for name, x in wanted.items() if not torch.equal(x, found[name])]


@pytest.mark.parametrize("options", [{}] if LATEST else [{"save_safetensors": True}, {"save_safetensors": False}])
def test_what_it_saves_loads_everywhere(options: dict[str, Any], tmp_path: Path) -> None:
    """`save_model` writes a state_dict; the best model is loaded back at the end."""
    model = small(dtype=np.float32)
    options |= {"eval_strategy" if LATEST else "evaluation_strategy": "steps"}
    loop = trainer(model, tmp_path, eval_steps=2, load_best_model_at_end=True, **options)
    loop.train()
    loop.save_model(str(tmp_path / "final"))
    model.config.save_pretrained(tmp_path / "final")
    for cls in (ErnieMForSequenceClassification, getattr(transformers, "ErnieMForSequenceClassification", None)):
        if cls is None:
            continue  # in transformers 5
        other = cls.from_pretrained(tmp_path / "final")
        assert all(torch.equal(x, other.state_dict()[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1, **BY_LENGTH},
        {"label_smoothing_factor": 0.1},
        {"bf16": True},
        {"auto_find_batch_size": True, "neftune_noise_alpha": None},
        {"eval_accumulation_steps": 1, "dataloader_drop_last": True},
        {"torch_compile": False, "optim": "adafactor", "lr_scheduler_type": "cosine", "warmup_steps": 1},
    ],
    ids=lambda options: "+".join(options),
)
def test_its_options(options: dict[str, Any], tmp_path: Path) -> None:
    model = small(dtype=np.float32).train()
    before = copied(model.state_dict())
    data = [{key: x.tolist() for key, x in row.items()} for row in rows(type(model))]
    loop = trainer(model, tmp_path, data, num_train_epochs=1, save_strategy="no", **options)
    loop.train()
    assert np.isfinite(loop.evaluate()["eval_loss"])
    after = model.state_dict()
    weights = [name for name in before if name.endswith("weight") and "position" not in name]
    assert not [name for name in weights if torch.equal(before[name], after[name])]


def test_the_tokenizer_goes_with_it(tmp_path: Path) -> None:
    """It pads batches in the collators, and is saved beside the model."""
    tokenizer = ErnieMTokenizer.from_pretrained(demo.directory())
    texts = ["Save the file.", "关闭窗口之前，请先保存文件。", "x", ""]
    data = [{**tokenizer(text), "labels": i % 2} for i, text in enumerate(texts)]
    model = small(dtype=np.float32, vocab_size=tokenizer.vocab_size)
    given = {"processing_class" if LATEST else "tokenizer": tokenizer}
    arguments = transformers.TrainingArguments(str(tmp_path), num_train_epochs=1, use_cpu=True, report_to="none")
    collate = transformers.DataCollatorWithPadding(tokenizer)
    loop = transformers.Trainer(model, arguments, train_dataset=data, data_collator=collate, **given)
    loop.train()
    loop.save_model()
    again = ErnieMTokenizer.from_pretrained(tmp_path)
    assert again(texts) == tokenizer(texts)
    # Labels of tokens are padded too, and words are masked, but no special tokens.
    rows = [{**tokenizer(text), "labels": [7] * len(tokenizer(text)["input_ids"])} for text in texts]
    padded = transformers.DataCollatorForTokenClassification(tokenizer)(rows)
    assert torch.equal(padded["labels"] == 7, padded["attention_mask"] == 1)
    masked = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.9)([tokenizer(t) for t in texts])
    special = [tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id]
    kept = torch.isin(padded["input_ids"], torch.tensor(special))
    assert torch.equal(masked["input_ids"][kept], padded["input_ids"][kept]) and (masked["labels"][kept] == -100).all()
    assert (masked["labels"] != -100).any()


@pytest.mark.parametrize("alpha", [5.0])
def test_noise_on_the_embeddings(alpha: float, tmp_path: Path) -> None:
    """NEFTune hooks the module that `get_input_embeddings` names; the hook is gone afterwards."""
    results = []
    for value in (None, alpha):
        model = small(dtype=np.float32)
        loop = trainer(model, tmp_path, num_train_epochs=1, save_strategy="no", neftune_noise_alpha=value)
        results.append(loop.train().training_loss)
        assert not model.get_input_embeddings()._forward_hooks
    assert results[0] != results[1]


def test_callbacks_read_the_configuration(tmp_path: Path) -> None:
    """Those for TensorBoard and others log it as JSON and as a dictionary."""
    seen = {}

    class Reader(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            seen["json"], seen["dict"] = model.config.to_json_string(), model.config.to_dict()

    loop = trainer(small(dtype=np.float32), tmp_path, num_train_epochs=1, save_strategy="no")
    loop.add_callback(Reader())
    loop.train()
    assert json.loads(seen["json"]) == seen["dict"]


def test_targets_of_other_names_are_named(tmp_path: Path) -> None:
    """Information extraction has real numbers at each token as targets."""
    cls = ErnieMForInformationExtraction
    names = ["start_positions", "end_positions"]
    data = [{key: x.float() if key in names else x for key, x in row.items()} for row in rows(cls)]
    loop = trainer(small(cls, np.float32), tmp_path, data, label_names=names, save_strategy="no")
    before = loop.evaluate()["eval_loss"]
    loop.train()
    assert loop.evaluate()["eval_loss"] < before


def test_adapters_train_in_it(tmp_path: Path) -> None:
    """Only they change, only they are saved."""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(small(dtype=np.float32), peft.LoraConfig(r=2, target_modules=["q_proj", "linear1"]))
    before = copied(model.state_dict())
    loop = trainer(model, tmp_path, rows(ErnieMForSequenceClassification), label_names=["labels"])
    loop.train()
    changed = {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert (tmp_path / "checkpoint-8" / "adapter_model.safetensors").exists()


def test_every_class_has_a_signature_that_it_understands() -> None:
    """It looks for the names of the targets there, and drops columns that are not arguments."""
    from transformers.utils.generic import find_labels

    for cls in CLASSES[1:5]:
        wanted = ["start_positions", "end_positions"] if "Question" in cls.__name__ else ["labels"]
        assert find_labels(cls) == wanted
        # Release 5 would pass num_items_in_batch to the call.
        assert cls.accepts_loss_kwargs is False
