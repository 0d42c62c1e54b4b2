"""As a job what `minos study` is as a command: python jobs/study.py CONFIG key=value ..."""

import sys

from minos_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["study", *sys.argv[1:]]))
