"""The miniature: an embedded world of word problems whose every step can be checked exactly."""

from minos_ray.miniature.corpus import corpus
from minos_ray.miniature.problems import load

__all__ = ["corpus", "load"]
