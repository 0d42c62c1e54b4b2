"""Math-Minos on Ray: verifiers for mathematical reasoning, trained with natural-language critiques."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Config", "Manifest", "Run", "UserError", "load_config"]

_HOMES = {
    "Config": "minos_ray.config.load",
    "load_config": "minos_ray.config.load",
    "Run": "minos_ray.store.run",
    "Manifest": "minos_ray.store.run",
    "UserError": "minos_ray.errors",
}


def __getattr__(name: str) -> Any:
    """Imports the public names on first use, so that `import minos_ray` stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'minos_ray' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
