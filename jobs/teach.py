"""As a job what `minos teach` is as a command: python jobs/teach.py CONFIG key=value ..."""

import sys

from minos_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["teach", *sys.argv[1:]]))
