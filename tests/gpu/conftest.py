"""Without Triton the kernel tests cannot even be imported, so they are left out; kernel_device says where the others run."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("triton") else ["test_triton_*.py"]
