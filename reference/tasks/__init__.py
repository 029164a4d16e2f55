"""Jobs that people run a checkpoint for: texts in, answers out.

encoder       texts to vectors, however many and however long
long_texts    what to do with texts that are longer than the model
"""

from .encoder import POOLINGS, Encoder
from .long_texts import POLICIES

__all__ = ["POLICIES", "POOLINGS", "Encoder"]
