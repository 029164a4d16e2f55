"""The heads: the layers on top of the encoder for each task, and their training losses.

    sequence classification   classifier(dropout(pooled))             one answer per text
    multiple choice           classifier(dropout(pooled)) per choice  which of C texts
    token classification      classifier(dropout(hidden))             one answer per token
    question answering        qa_outputs(hidden)                      where the single span begins and ends
    information extraction    linear_start(hidden), linear_end(...)   where any number of spans begin and end
    masked language model     LayerNorm(gelu(dense(hidden))) @ words  which word each token is: pretraining

Padding has no effect: at padded positions token logits are the classifier's bias and span logits are `padded_logit`.
The losses ignore padded positions, and rows and choices without tokens.

Source: transformers 4.40.2, `modeling_ernie_m.py`; paddlenlp 2.8.1, `UIEM`. In both, padding does have an effect.
"""

from .head import Head, padded_logit
from .pooled import ErnieMForMultipleChoice, ErnieMForSequenceClassification
from .spans import ErnieMForInformationExtraction, ErnieMForQuestionAnswering
from .tokens import ErnieMForTokenClassification
from .words import ErnieMForMaskedLM

__all__ = [
    "ErnieMForInformationExtraction",
    "ErnieMForMaskedLM",
    "ErnieMForMultipleChoice",
    "ErnieMForQuestionAnswering",
    "ErnieMForSequenceClassification",
    "ErnieMForTokenClassification",
    "Head",
    "padded_logit",
]
