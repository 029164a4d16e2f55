"""What people run a checkpoint for: texts in, results out.

encoder       texts to vectors, for texts of any number and length
backends      the model of `encoder`: the reference in NumPy, or a torch model of `ernie_m.kernels`
long_texts    how to treat texts that are longer than the model's maximum length
"""

from .backends import BACKENDS
from .encoder import POOLINGS, Encoder
from .long_texts import POLICIES

__all__ = ["BACKENDS", "POLICIES", "POOLINGS", "Encoder"]
