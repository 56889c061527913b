"""Bridges to the authors' code: checkpoint names. Nothing else in the package depends on this."""

from case.compat.checkpoint import from_released, load_released, released_sizes, to_released

__all__ = ["from_released", "load_released", "released_sizes", "to_released"]
