"""``case-wtal info``: versions, devices, and which parts are in use and why."""

from __future__ import annotations

import platform
from collections.abc import Sequence

from case import __version__, _native, console
from case.errors import CaseError


def run(argv: Sequence[str]) -> int:
    if argv:
        if argv[0] in ("-h", "--help"):
            print("usage: case-wtal info      versions, devices, which parts are in use and why")
            return 0
        raise CaseError(f"`case-wtal info` takes no arguments, got '{argv[0]}'")
    console.table("case", ("part", "state"), rows())
    return 0


def rows() -> list[tuple[str, str]]:
    """(part, state) pairs, one line each."""
    import numpy as np
    import torch

    from case.ops import _backend

    native = _native.load()
    found = [
        ("case", __version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} CPU threads"),
        ("numpy", np.__version__),
    ]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found.append(("CUDA devices", ", ".join(names)))
    else:
        found.append(("CUDA devices", "none that torch can use"))
    if native is None:
        found.append(("case._C", f"absent: {_native.reason()}"))
    else:
        info = native.build_info()
        cuda = f"CUDA {info['cuda_version']} for {', '.join(info['cuda_archs'])}" if info["cuda"] else "no CUDA half"
        found.append(("case._C", f"{info['compiler']}, OpenMP {'yes' if info['openmp'] else 'no'}, {cuda}"))
    found.append(("Triton", _native.triton_reason() or "present"))
    found += [(f"op {op}", ", ".join(where)) for op, where in _backend.table().items()]
    return found
