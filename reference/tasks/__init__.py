"""What people run a checkpoint for: texts in, results out.

encoder       texts to vectors, for texts of any number and length
long_texts    how to treat texts that are longer than the model's maximum length
"""

from .encoder import POOLINGS, Encoder
from .long_texts import POLICIES

__all__ = ["POLICIES", "POOLINGS", "Encoder"]
