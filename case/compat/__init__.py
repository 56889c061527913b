"""Bridges to the authors' code: checkpoint names. Nothing else in the package depends on this."""

from case.compat.checkpoint import from_released, to_released

__all__ = ["from_released", "to_released"]
