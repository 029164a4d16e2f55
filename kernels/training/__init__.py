"""Training, in torch: the loop, its checkpoints and logs, and what is learnt.

Read in this order: `settings`, `loop`, `optimizer`, `parallel`, `saving`, `signals`, `logs`, `pretraining`, `vectors`;
for fine-tuning `jobs`, `span_jobs`, `finetuning`. Texts, rows, batches and figures are those of
`ernie_m.reference.training`.
"""

from .finetuning import JOBS, FineTuning
from .loop import Batch, Stopped, Task, train
from .parallel import Group, group
from .pretraining import Pretraining, vocabulary_of
from .settings import Settings

__all__ = [
    "JOBS",
    "Batch",
    "FineTuning",
    "Group",
    "Pretraining",
    "Settings",
    "Stopped",
    "Task",
    "group",
    "train",
    "vocabulary_of",
]
