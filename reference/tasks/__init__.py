"""What people run a checkpoint for: texts in, results out.

encoder       texts to vectors, or to vectors of tokens, for texts of any number and length
recorded      the layer and the means of languages that a checkpoint records
backends      the model of `encoder`: the reference in NumPy, or a torch model of `ernie_m.kernels`
long_texts    how to treat texts that are longer than the model's maximum length
search        the nearest vectors of a corpus, of any size, by cosine
align         which words of a sentence and its translation belong together
"""

from .align import METHODS, AlignedPair, align
from .backends import BACKENDS, POOLINGS
from .encoder import Encoder, TokenVectors
from .long_texts import POLICIES
from .recorded import Recorded, read_recorded
from .search import Hits, search

__all__ = [
    "BACKENDS",
    "METHODS",
    "POLICIES",
    "POOLINGS",
    "AlignedPair",
    "Encoder",
    "Hits",
    "Recorded",
    "TokenVectors",
    "align",
    "read_recorded",
    "search",
]
