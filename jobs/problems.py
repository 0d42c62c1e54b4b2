"""As a job what `minos problems` is as a command: python jobs/problems.py CONFIG key=value ..."""

import sys

from minos_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["problems", *sys.argv[1:]]))
