"""The miniature: an embedded world of word problems whose every step can be checked exactly."""

from minos_ray.problems.miniature.maker import load
from minos_ray.problems.miniature.noise import corpus

__all__ = ["corpus", "load"]
