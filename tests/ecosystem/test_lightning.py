"""Lightning's loop: trains, validates with outputs as they are, saves, resumes. Only in `make test-all`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ecosystem_helpers import batch, copied, small
from torch.utils.data import DataLoader

pytestmark = pytest.mark.all
ROWS = [{key: x[i] for key, x in batch(B=8).items()} for i in range(8)]


@pytest.fixture
def lightning() -> Any:
    """Lightning, if it is installed."""
    return pytest.importorskip("lightning", reason="lightning is not installed: pip install 'ernie-m[test-all]'")


@pytest.fixture
def classifier(lightning: Any) -> Any:
    """A LightningModule whose steps return the whole output, which Lightning takes as a dictionary with a loss."""

    class Classifier(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, seed: int = 0) -> None:
            super().__init__()
            self.model = small(dtype=np.float32, seed=seed)

        def training_step(self, given: dict[str, Any], index: int) -> Any:
            out = self.model(**given)
            self.log_dict({"train_loss": out["loss"]})
            return out

        def validation_step(self, given: dict[str, Any], index: int) -> Any:
            out = self.model(**given)
            self.log("loss", out.loss)
            return out

        def predict_step(self, given: dict[str, Any], index: int) -> Any:
            return self.model(**given).logits

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    return Classifier


def trainer(lightning: Any, folder: Path, epochs: int) -> Any:
    """A Trainer that keeps a checkpoint of each epoch."""
    return lightning.Trainer(
        default_root_dir=str(folder),
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        callbacks=[lightning.pytorch.callbacks.ModelCheckpoint(str(folder), filename="{epoch}", save_top_k=-1)],
    )


@pytest.mark.filterwarnings("ignore")
def test_it_trains_predicts_and_resumes(lightning: Any, classifier: Any, tmp_path: Path) -> None:
    """A run that is resumed after the first epoch ends with the weights of an unbroken one."""
    loader = DataLoader(ROWS, batch_size=2)
    whole = classifier()
    loop = trainer(lightning, tmp_path / "whole", 2)
    before = loop.validate(whole, loader, verbose=False)[0]["loss"]
    loop.fit(whole, loader, loader)
    assert float(loop.callback_metrics["loss"]) < before
    assert sum(len(x) for x in loop.predict(whole, loader)) == len(ROWS)
    wanted = copied(whole.state_dict())

    checkpoint = str(tmp_path / "whole" / "epoch=0.ckpt")
    half = classifier.load_from_checkpoint(checkpoint)
    assert list(half.state_dict()) == list(wanted)
    assert not any(torch.equal(x, wanted[name]) for name, x in half.state_dict().items() if "v_proj.weight" in name)
    resumed = classifier(seed=2)
    trainer(lightning, tmp_path / "resumed", 2).fit(resumed, loader, loader, ckpt_path=checkpoint)
    assert all(torch.equal(x, wanted[name]) for name, x in resumed.state_dict().items())
