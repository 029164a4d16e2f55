"""Which implementation runs on a CPU without the interpreter, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CALL = """
import sys
import torch
from torch_models import CLASSES, config_of
from ernie_m.kernels.runtime.dispatch import INTERPRETED

torch.set_num_threads(1)
assert not INTERPRETED
ids = torch.arange(2, 14).view(3, 4)
for cls in CLASSES[:2]:
    model = cls(config_of())
    for mask in (torch.ones(3, 4), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]])):
        with torch.no_grad():
            model.eval()(ids, attention_mask=mask)
        out = model.train()(ids, attention_mask=mask)
        out[0].sum().backward()
print("torch._dynamo" in sys.modules)
"""


def test_a_call_without_kernels_does_not_import_the_compiler(repository: Path) -> None:
    """That takes longer than the call. Seen red: a custom operation, which imports it when it is first called."""
    environment = {key: x for key, x in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(repository / "tests"), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", CALL], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip() == "False"
