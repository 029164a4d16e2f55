"""`python -m ernie_m.reference` runs `ernie-m`."""

import sys

from .cli import main

sys.exit(main())
