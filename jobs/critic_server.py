"""A critic served by vLLM on the cluster until this job ends: python jobs/critic_server.py MODEL [options] (--help)"""

import sys

from minos_ray.critiques.serve import main

if __name__ == "__main__":
    sys.exit(main())
