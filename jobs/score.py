"""As a job what `minos score` is as a command: python jobs/score.py CONFIG key=value ..."""

import sys

from minos_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
