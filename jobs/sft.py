"""As a job what `minos sft` is as a command: python jobs/sft.py CONFIG key=value ..."""

import sys

from minos_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["sft", *sys.argv[1:]]))
