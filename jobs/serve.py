"""As a job what `minos serve` is as a command: python jobs/serve.py MODEL --host ... --api-key-env ..."""

import sys

from minos_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
