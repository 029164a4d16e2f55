"""What people run a checkpoint for: texts in, results out.

encoder       texts to vectors, or to vectors of tokens, for texts of any number and length
recorded      the layer and the means of languages that a checkpoint records
search        the nearest vectors of a corpus, of any size, by cosine
align         which words of a sentence and its translation belong together
extraction    texts and a schema to entities, relations and classifications (UIE)
schema        the schema of an extraction, and its prompts
decoding      from probabilities to spans and labels
answering     where in a context the answer to a question is
tagging       entities, from labels of tokens
classifying   the classes of texts or pairs, and into labels that the head never saw
choosing      which of several texts goes with a prompt
task          what tasks of a head share: its outputs for any number of rows
backends      the models: the reference in NumPy, or torch models of `ernie_m.kernels`
long_texts    how to treat texts that are longer than the model's maximum length
"""

from .align import METHODS, AlignedPair, align
from .answering import Answerer
from .backends import BACKENDS, POOLINGS
from .choosing import Chooser
from .classifying import Classifier
from .encoder import Encoder
from .extraction import Extractor
from .long_texts import POLICIES
from .recorded import Recorded, read_recorded
from .results import Answer, Choice, Entity, Label, TokenVectors
from .search import Hits, search
from .tagging import SCHEMES, Tagger

__all__ = [
    "BACKENDS",
    "METHODS",
    "POLICIES",
    "POOLINGS",
    "SCHEMES",
    "AlignedPair",
    "Answer",
    "Answerer",
    "Choice",
    "Chooser",
    "Classifier",
    "Encoder",
    "Entity",
    "Extractor",
    "Hits",
    "Label",
    "Recorded",
    "Tagger",
    "TokenVectors",
    "align",
    "read_recorded",
    "search",
]
