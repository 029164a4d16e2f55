"""The objectives of pretraining: which tokens are masked, what each token sees, and what is predicted.

    MMLM    a sentence                              masked words from the rest of it
    TLM     a sentence and its translation          masked words from both
    CAMLM   the same, with limits on what is seen   masked words from the translation alone
    BTMLM   a sentence and made-up foreign words    masked words from both, where there is no translation

Each function takes token ids without special tokens and returns an `Example`; `collate` makes a batch of them that
`ErnieMForMaskedLM` takes. With "own side" and "other side" of a token, CAMLM's rules are

    unmasked text   sees its own side's text, and so learns nothing of the other
    a mask          sees the other side's text, and itself

If text saw both sides, the first layer would carry a mask's own side into the other, where the mask reads it in the
second.

Sequences are built as in fine-tuning: [CLS] X [SEP], and [CLS] X [SEP] [SEP] Y [SEP], where the second side begins at
the second [SEP]. Special tokens are text of their side, and never masked.

Source: ERNIE-M (Ouyang et al., arXiv:2012.15674), section 3 and figure 1; Cross-lingual Language Model Pretraining
(Lample and Conneau, 2019) for TLM and the replacement of masked tokens. Neither ratios of masked tokens nor code were
published for ERNIE-M. What the paper leaves open is an argument here.
"""

from .arranging import arrange, dense
from .examples import Example, collate
from .masking import Vocabulary, choose, replace_tokens
from .monolingual import btmlm, btmlm_placeholders, mmlm, pseudo_tokens
from .pairs import camlm, camlm_sees, tlm

__all__ = [
    "Example",
    "Vocabulary",
    "arrange",
    "btmlm",
    "btmlm_placeholders",
    "camlm",
    "camlm_sees",
    "choose",
    "collate",
    "dense",
    "mmlm",
    "pseudo_tokens",
    "replace_tokens",
    "tlm",
]
