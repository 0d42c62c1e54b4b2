"""As a job what `minos critique` is as a command: python jobs/critique.py CONFIG key=value ..."""

import sys

from minos_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["critique", *sys.argv[1:]]))
