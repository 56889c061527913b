"""Triton kernels and their launchers: no autograd, no torch.nn, imported as ``case.kernels`` only.

This file imports without Triton; the modules beside it do not.
"""

if __name__ != "case.kernels":
    raise ImportError(f"import case.kernels, not {__name__}: the folder is a part of case (pip install -e .)")
