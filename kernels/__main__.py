"""`python -m ernie_m.kernels COMMAND`: see `cli/`."""

import sys

from .cli import main

sys.exit(main())
