"""`python -m minos_ray` is `minos`."""

import sys

from minos_ray.cli import main

sys.exit(main())
