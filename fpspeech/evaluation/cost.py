"""What a run costs: floating-point operations, seconds, peak memory; and what zeros would save.

Two numbers about one sparse model must not be mixed up: the operations a run carries out, and
those of them that meet a weight other than zero. The second is smaller than the first; the run is
not faster for it, since scattered zeros are multiplied like other weights.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fpspeech.pruning import PrunableLayer, PruningError

_PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class Cost:
    """What one run took.

    flops: see `count_flops`. seconds: of wall time. cpu_seconds: of all threads of this process
    together, children not included. peak_bytes: the most memory that was held at once while it
    ran, what was held before (the model) included: resident in RAM, or allocated by torch on a
    GPU. None where it cannot be told: the system keeps one high-water mark a process, and where
    that cannot be set back (everywhere but on Linux) it only speaks of a run that exceeds it.
    """

    flops: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int | None


def measure_cost(run: Callable[[], object], device: torch.device | str = "cpu") -> Cost:
    """Calls `run` twice, alike: once to count operations, then for time and memory.

    Counting slows a run down, so it is not timed; it also warms up what is timed after it.
    device: whose memory is meant, and what is waited for.
    """
    device = torch.device(device)
    flops = count_flops(run)
    mark = _MemoryMark(device)
    _wait_for(device)
    started, started_cpu = time.perf_counter(), time.process_time()
    run()
    _wait_for(device)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    return Cost(flops, seconds, cpu_seconds, mark.peak())


def count_flops(run: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, convolutions, attention and linear solves.

    A multiplication and an addition are two. A backward pass counts where `run` has one. Not
    counted: element-wise operations, norms, softmax, sorting, Fourier transforms, and whatever
    does not run in torch. Factorisations and solves count by their textbook formulas (Golub, Van
    Loan, Matrix Computations, 2013), leading terms only.
    """
    counter = FlopCounterMode(display=False, custom_mapping=dict(_FORMULAS))
    # Its tracker of modules trips over weights that are parametrized, in inference mode; only the
    # total is wanted.
    counter.mod_tracker = _Untracked()  # type: ignore[assignment]
    with counter:
        run()
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class SparseFlops:
    """Operations of a run, and those of them whose weight is not a pruned one.

    all: what is carried out. nonzero: without the products with a pruned weight; what a machine
    that skips them would be left with, not a measure of speed on one that does not.
    """

    all: int
    nonzero: int


def sparse_flops(
    run: Callable[[], object], layers: Sequence[PrunableLayer], masks: Mapping[str, Tensor]
) -> SparseFlops:
    """Counts a forward run of a model under masks, which need not be in force.

    masks: by layer name, True where kept, shape (groups, outputs, inputs); a layer without one
    is dense. Each pruned weight saves a multiplication and an addition at every output position.
    Raises PruningError for a mask of another shape.
    """
    saved = 0

    def count(zeros: int, units: int, module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal saved
        saved += 2 * zeros * (output.numel() // units)

    handles = []
    try:
        for layer in layers:
            if layer.name not in masks:
                continue
            mask = masks[layer.name]
            if tuple(mask.shape) != layer.shape:
                raise PruningError(
                    f"the mask of {layer.name} has shape {tuple(mask.shape)}, the layer's weight "
                    f"{layer.shape} (groups, outputs, inputs): they belong to different models"
                )
            zeros = int(mask.numel() - mask.sum())
            units = layer.shape[0] * layer.shape[1]  # outputs at one position
            handles.append(layer.module.register_forward_hook(partial(count, zeros, units)))
        total = count_flops(run)
    finally:
        for handle in handles:
            handle.remove()
    return SparseFlops(total, total - saved)


class _MemoryMark:
    """The high-water mark of memory, set back to what is held now where that is possible."""

    def __init__(self, device: torch.device):
        self._device = device
        self._before = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif not _set_back():
            self._before = _high_water()

    def peak(self) -> int | None:
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        now = _high_water()
        return now if now > self._before else None


def _set_back() -> bool:
    try:
        (_PROCESS / "clear_refs").write_text("5")  # Linux: VmHWM becomes the present VmRSS
    except OSError:
        return False
    return True


def _high_water() -> int:
    """The most bytes this process has had resident."""
    try:
        lines = (_PROCESS / "status").read_text().splitlines()
        # Not ru_maxrss: Linux's would include that of the parent, up to the exec.
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Untracked:
    """Takes the place of `torch.utils.module_tracker.ModuleTracker`: all is in one place."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        return

    def __exit__(self, *exception: object) -> None:
        return


def _matrices(shape: Sequence[int]) -> int:
    return math.prod(shape[:-2])


def _product(
    _sum: Sequence[int], left: Sequence[int], right: Sequence[int], *_: Any, **__: Any
) -> int:
    return 2 * _matrices(left) * left[-2] * left[-1] * right[-1]


def _times_vector(matrix: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * matrix[0] * matrix[1]


def _cubic(numerator: int, denominator: int) -> Callable[..., int]:
    def flops(shape: Sequence[int], *_: Any, **__: Any) -> int:
        return numerator * _matrices(shape) * shape[-1] ** 3 // denominator

    return flops


def _cholesky_solve(right: Sequence[int], factor: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * _matrices(right) * factor[-1] ** 2 * right[-1]


def _triangular_solve(matrix: Sequence[int], right: Sequence[int], *_: Any, **__: Any) -> int:
    return _matrices(right) * right[-2] * right[-1] * matrix[-1]


def _solve(matrix: Sequence[int], right: Sequence[int], *_: Any, **__: Any) -> int:
    columns = right[-1] if len(right) == len(matrix) else 1
    return _cubic(2, 3)(matrix) + 2 * _matrices(matrix) * matrix[-1] ** 2 * columns


def _attention(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    batch, heads, queries, width = q
    return 2 * batch * heads * queries * k[2] * (width + v[3])


def _attention_backward(
    _gradient: Sequence[int],
    q: Sequence[int],
    k: Sequence[int],
    v: Sequence[int],
    *_: Any,
    **__: Any,
) -> int:
    # The scores once more, then two products for the values and two for queries and keys.
    batch, heads, queries, width = q
    return 2 * batch * heads * queries * k[2] * (3 * width + 2 * v[3])


def _convolution_backward(
    gradient: Sequence[int],
    inputs: Sequence[int],
    weight: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    wanted: Sequence[bool],
    **__: Any,
) -> int:
    # As many products for the inputs as forward, and as many for the weight.
    positions = inputs if transposed else gradient
    products = math.prod(weight) * positions[0] * math.prod(positions[2:])
    return 2 * products * sum(wanted[:2])


_ATEN = torch.ops.aten

_FORMULAS: Mapping[Any, Callable[..., int]] = {
    # What torch's own table lacks: attention on a CPU, products in place, linear algebra. Its
    # count of a grouped convolution's weight gradient is too high by the number of groups.
    _ATEN.convolution_backward: _convolution_backward,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    _ATEN.addmm_: _product,
    _ATEN.baddbmm_: _product,
    _ATEN.mv: _times_vector,
    _ATEN.linalg_cholesky_ex: _cubic(1, 3),
    _ATEN.cholesky_inverse: _cubic(2, 3),
    _ATEN.linalg_inv_ex: _cubic(2, 1),
    _ATEN.cholesky_solve: _cholesky_solve,
    _ATEN._linalg_solve_ex: _solve,
    _ATEN.linalg_solve_triangular: _triangular_solve,
    _ATEN._linalg_eigh: _cubic(9, 1),  # with the vectors
}
