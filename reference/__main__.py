"""`python -m ernie_m.reference` is `ernie-m`."""

import sys

from .cli import main

sys.exit(main())
