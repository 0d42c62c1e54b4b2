"""As a job what `minos reward` is as a command: python jobs/reward.py CONFIG key=value ..."""

import sys

from minos_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["reward", *sys.argv[1:]]))
