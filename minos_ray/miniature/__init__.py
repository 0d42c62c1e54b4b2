"""The miniature: an embedded world of word problems whose every step can be checked exactly."""

from minos_ray.miniature.problems import corpus, load

__all__ = ["corpus", "load"]
