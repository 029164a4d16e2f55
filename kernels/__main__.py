"""`python -m ernie_m.kernels COMMAND`: see `cli.py`."""

import sys

from .cli import main

sys.exit(main())
