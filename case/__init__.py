"""CASE: weakly-supervised temporal action localization by clustering and optimal transport.

``case.ops`` holds the ops alone (no model), ``case.model`` the network, ``case.testing`` the parity
harness; the command line is ``case``. Submodules are imported on first use, so that ``import case``
stays cheap and ``case-wtal --help`` does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_SUBMODULES = ("compat", "config", "data", "engine", "inference", "metrics", "model", "objective", "ops", "testing")

if TYPE_CHECKING:
    from case import compat, config, data, engine, inference, metrics, model, objective, ops, testing

__all__ = ["__version__", *_SUBMODULES]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"case.{name}")
    raise AttributeError(f"module 'case' has no attribute '{name}'")
