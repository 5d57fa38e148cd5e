"""Streaming statistics of what each weight multiplies: n, Σx, Σ|x| and Σx² for every input.

Where asked, also Σxxᵀ. Memory is a few vectors a layer (and that matrix) however much data flows
by; unfolded inputs of convolutions are made piece by piece. Sums are taken in float32 or better
within a batch and kept in float64 between batches (float32 where the device has no float64).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpspeech.pruning.layers import PrunableLayer, PruningError

UNFOLDED_VALUES = 1 << 23  # numbers of a convolution's unfolded input in memory at a time: 32 MiB

Valid = Callable[[str], Sequence[int] | None]
"""Layer name -> for each item of the batch, how many leading positions count; None: all do."""


@dataclass(frozen=True)
class InputStatistics:
    """Sums over the inputs of one layer.

    count: positions seen (frames, or output positions of a convolution).
    total, absolute, square: Σx, Σ|x|, Σx², each of shape (groups, inputs).
    products: Σxxᵀ, shape (groups, inputs, inputs), where it was asked for; of product_count
    positions, since neighbours are alike. product_total: Σx over these positions, (groups, inputs);
    None: the same as `total`, since they are all positions.
    """

    count: int
    total: Tensor
    absolute: Tensor
    square: Tensor
    products: Tensor | None = None
    product_count: int = 0
    product_total: Tensor | None = None

    @property
    def moments(self) -> Tensor | None:
        """E[xxᵀ], shape (groups, inputs, inputs), float32, where products were counted."""
        return None if self.products is None else self.products / self.product_count

    @property
    def mean(self) -> Tensor:
        """E[x], shape (groups, inputs)."""
        return self.total / self.count

    @property
    def product_mean(self) -> Tensor:
        """E[x] over the positions of `products`, shape (groups, inputs), as a covariance needs it.

        Raises PruningError when neither these positions' sum nor all positions were counted.
        """
        if self.product_total is not None:
            return self.product_total / self.product_count
        if self.product_count != self.count:
            raise PruningError(
                f"the products are of {self.product_count} of {self.count} positions and hold no "
                "sum over these: observe the data anew"
            )
        return self.mean

    @property
    def mean_absolute(self) -> Tensor:
        """E|x|, shape (groups, inputs)."""
        return self.absolute / self.count

    @property
    def root_mean_square(self) -> Tensor:
        """sqrt(E[x²]), shape (groups, inputs)."""
        return (self.square / self.count).sqrt()

    def merged(self, other: InputStatistics) -> InputStatistics:
        """The statistics of both streams together."""
        if self.total.shape != other.total.shape:
            raise PruningError(
                f"statistics of different layers cannot be merged: inputs of shape "
                f"{tuple(self.total.shape)} and {tuple(other.total.shape)}"
            )
        return InputStatistics(
            self.count + other.count,
            self.total + other.total,
            self.absolute + other.absolute,
            self.square + other.square,
            None
            if self.products is None or other.products is None
            else self.products + other.products,
            self.product_count + other.product_count,
            None
            if self.product_total is None or other.product_total is None
            else self.product_total + other.product_total,
        )


def to_tensors(statistics: Mapping[str, InputStatistics]) -> dict[str, Tensor]:
    """Statistics as one flat dict of tensors, for a file; `from_tensors` undoes it bit for bit.

    "<layer>:counts": positions and positions of the products, int64; "<layer>:sums": Σx, Σ|x|, Σx²,
    shape (3, groups, inputs); "<layer>:products" and "<layer>:product_total" where they are.
    """
    tensors: dict[str, Tensor] = {}
    for name, found in statistics.items():
        tensors[f"{name}:counts"] = torch.tensor([found.count, found.product_count])
        tensors[f"{name}:sums"] = torch.stack([found.total, found.absolute, found.square])
        if found.products is not None:
            tensors[f"{name}:products"] = found.products
        if found.product_total is not None:
            tensors[f"{name}:product_total"] = found.product_total
    return tensors


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, InputStatistics]:
    """Undoes `to_tensors`; layers come in the order of their names in `tensors`.

    Raises PruningError when the sums or counts of a layer are missing or their shapes disagree.
    """
    statistics: dict[str, InputStatistics] = {}
    for name in dict.fromkeys(key.rpartition(":")[0] for key in tensors):
        counts, sums = tensors.get(f"{name}:counts"), tensors.get(f"{name}:sums")
        if counts is None or sums is None:
            raise PruningError(f"the statistics of {name!r} lack their counts or sums")
        products = tensors.get(f"{name}:products")
        product_total = tensors.get(f"{name}:product_total")
        found = (
            sums.dim() == 3 and sums.shape[0] == 3 and counts.shape == (2,),
            products is None or products.shape == (*sums.shape[1:], sums.shape[-1]),
            product_total is None or product_total.shape == sums.shape[1:],
        )
        if not all(found):
            raise PruningError(
                f"the statistics of {name!r} do not fit together: sums of shape "
                f"{tuple(sums.shape)}, expected (3, groups, inputs), with products "
                f"{None if products is None else tuple(products.shape)}"
            )
        total, absolute, square = sums.unbind(0)
        count, product_count = counts.tolist()
        statistics[name] = InputStatistics(
            count, total, absolute, square, products, product_count, product_total
        )
    return statistics


class Observer:
    """Collects the input statistics of layers while a model runs.

    Nothing is attached to the model outside `counting()`. The same observer may count many
    batches; `statistics()` gives the sums so far and `resume()` goes on from saved ones.
    products: names of the layers whose Σxxᵀ is wanted too, from every product_stride-th position,
    or from every one where they are tokens.
    """

    def __init__(
        self,
        layers: Sequence[PrunableLayer],
        products: Container[str] = (),
        product_stride: int = 1,
    ):
        self._layers = tuple(layers)
        self._products = products
        self._product_stride = product_stride
        self._sums: dict[str, _RunningSums] = {}
        self._scratch = _Scratch()

    @contextmanager
    def counting(self, valid: Valid | None = None) -> Iterator[None]:
        """Counts the inputs of every forward pass inside the block, once each.

        valid: how many leading positions count for a layer, an item of the batch each, so that
        batch padding never counts. Positions are frames (dimension 1 of a Linear's input,
        the output positions of a Conv1d). A convolution's own padding is part of what it
        sees and always counts.
        """
        handles = []
        try:
            for layer in self._layers:
                lengths = valid(layer.name) if valid is not None else None
                hook = self._hook(layer, lengths)
                handles.append(layer.module.register_forward_pre_hook(hook, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def statistics(self) -> dict[str, InputStatistics]:
        """The sums so far for every layer that saw input, on the CPU, by layer name.

        Raises PruningError, naming the layer, when an input was NaN or infinite.
        """
        return {name: sums.result(name) for name, sums in self._sums.items()}

    def resume(self, statistics: Mapping[str, InputStatistics]) -> None:
        """Goes on counting from `statistics` of the same layers; replaces what was counted."""
        known = {layer.name: layer for layer in self._layers}
        self._sums.clear()
        for name, saved in statistics.items():
            if name not in known:
                raise PruningError(f"saved statistics hold {name!r}, which is no observed layer")
            groups, _, inputs = known[name].shape
            if tuple(saved.total.shape) != (groups, inputs):
                raise PruningError(
                    f"saved statistics of {name} have shape {tuple(saved.total.shape)}, "
                    f"the layer needs {(groups, inputs)}: they were taken from another model"
                )
            self._sums[name] = _RunningSums(
                saved.count,
                torch.stack([saved.total, saved.absolute, saved.square]),
                saved.products,
                saved.product_count,
                saved.product_total,
            )

    def _hook(self, layer: PrunableLayer, lengths: Sequence[int] | None) -> Callable[..., None]:
        @torch.no_grad()
        def count_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = input_of(args, kwargs)
            sums = self._sums.setdefault(layer.name, _RunningSums())
            for positions in counted_positions(layer, inputs, lengths):
                before = sums.count
                sums.add(positions, self._scratch)
                if layer.name in self._products:
                    stride = 1 if layer.tokens else self._product_stride
                    sums.add_products(positions, stride, before)

        return count_input


def input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The input of a layer from what it was called with."""
    inputs: Tensor = args[0] if args else kwargs["input"]
    return inputs


class _Scratch:
    """One buffer for |x| and x² of every layer: fresh memory would cost more than the sums."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def like(self, values: Tensor) -> Tensor:
        """Memory of the shape, dtype and device of `values`, with anything in it."""
        buffer = self._buffer
        if (
            buffer is None
            or buffer.numel() < values.numel()
            or (buffer.dtype, buffer.device) != (values.dtype, values.device)
        ):
            with torch.inference_mode(False):  # a plain tensor may be written in any mode
                buffer = torch.empty(values.numel(), dtype=values.dtype, device=values.device)
            self._buffer = buffer
        return buffer[: values.numel()].view(values.shape)


@dataclass
class _RunningSums:
    count: int = 0
    sums: Tensor | None = None  # (3, groups, inputs): Σx, Σ|x|, Σx²
    products: Tensor | None = None  # (groups, inputs, inputs): Σxxᵀ
    product_count: int = 0
    product_total: Tensor | None = None  # (groups, inputs): Σx of the same positions

    def add(self, seen: _Positions, scratch: _Scratch) -> None:
        values = seen.values
        if values.dtype not in (torch.float32, torch.float64):
            values = values.float()
        copy = scratch.like(values)
        total = seen.reduce(values)
        absolute = seen.reduce(torch.abs(values, out=copy))
        square = seen.reduce(torch.mul(values, values, out=copy))
        batch = torch.stack([total, absolute, square]).to(_accumulator(values))
        self.sums = batch if self.sums is None else self.sums.to(batch) + batch
        self.count += seen.count

    def add_products(self, seen: _Positions, stride: int, before: int) -> None:
        """Adds Σxxᵀ of every stride-th of the positions; before: how many were seen before."""
        # float32 between batches too: in float64 these matrices would outweigh the model.
        for rows in seen.rows(stride, before):  # (groups, inputs, positions)
            rows = rows.float() if rows.dtype != torch.float64 else rows
            product = rows @ rows.transpose(1, 2)
            total = rows.sum(-1).to(_accumulator(rows))
            if self.products is None or self.product_total is None:
                self.products, self.product_total = product, total
            else:
                self.products = self.products.to(product) + product
                self.product_total = self.product_total.to(total) + total
            self.product_count += rows.shape[-1]

    def result(self, name: str) -> InputStatistics:
        if self.sums is None or self.count == 0:
            raise PruningError(f"{name} saw no input: every position was batch padding")
        sums = self.sums.cpu()
        if not bool(torch.isfinite(sums).all()):
            raise PruningError(
                f"the input of {name} was NaN or infinite: check the data, and run a float16 "
                "model in float32 or bfloat16 if its activations overflow"
            )
        total, absolute, square = sums.unbind(0)
        products = None if self.products is None else self.products.cpu()
        product_total = None if self.product_total is None else self.product_total.cpu()
        return InputStatistics(
            self.count, total, absolute, square, products, self.product_count, product_total
        )


def _accumulator(values: Tensor) -> torch.dtype:
    return torch.float32 if values.device.type == "mps" else torch.float64


@dataclass(frozen=True)
class _Positions:
    """The positions of one input that count, and how to sum over them.

    values: the (padded) input. count: positions. reduce: a tensor of the same layout ->
    its sums over the positions, shape (groups, inputs). rows: (n, positions seen before) -> the
    inputs of every n-th position, in pieces of shape (groups, inputs, positions).
    """

    values: Tensor
    count: int
    reduce: Callable[[Tensor], Tensor]
    rows: Callable[[int, int], Iterator[Tensor]]


def counted_positions(
    layer: PrunableLayer, inputs: Tensor, lengths: Sequence[int] | None
) -> Iterator[_Positions]:
    """The positions of a layer's input that count: all together, or by item where some do not."""
    module = layer.module
    split = _linear_positions if isinstance(module, nn.Linear) else _convolution_positions
    if lengths is None:
        yield split(layer, inputs, None)
        return
    if inputs.dim() != 3 or len(lengths) != inputs.shape[0]:
        raise PruningError(
            f"{layer.name}: {len(lengths)} lengths were given for an input of shape "
            f"{tuple(inputs.shape)}; expected three dimensions and a length an item"
        )
    for item, length in enumerate(lengths):
        if length > 0:
            yield split(layer, inputs[item : item + 1], length)


def _linear_positions(layer: PrunableLayer, inputs: Tensor, length: int | None) -> _Positions:
    if length is not None:
        inputs = inputs[:, :length]
    rows = inputs.reshape(-1, inputs.shape[-1])  # (positions, inputs)
    return _Positions(
        rows,
        rows.shape[0],
        reduce=lambda values: values.sum(0, keepdim=True),
        rows=lambda stride, before: iter([rows[_start(before, stride) :: stride].T.unsqueeze(0)]),
    )


def _convolution_positions(layer: PrunableLayer, inputs: Tensor, length: int | None) -> _Positions:
    """Sums over strided windows, the input that each kernel offset sees; nothing is unfolded."""
    module = layer.module
    assert isinstance(module, (nn.Conv1d, nn.Conv2d))
    axes = len(module.kernel_size)
    if inputs.dim() == axes + 1:  # a single item, without the batch dimension
        inputs = inputs.unsqueeze(0)
    padding = _padding(module)
    padded = F.pad(inputs, padding, mode=_padding_mode(module)) if any(padding) else inputs
    outputs = [
        (padded.shape[2 + axis] - module.dilation[axis] * (module.kernel_size[axis] - 1) - 1)
        // module.stride[axis]
        + 1
        for axis in range(axes)
    ]
    if length is not None:
        outputs[0] = min(length, outputs[0])
    items, channels = padded.shape[:2]
    size = (items, channels, *module.kernel_size, *outputs)
    groups, _, columns = layer.shape
    over = (0, *range(2 + axes, 2 + 2 * axes))

    def windows(values: Tensor) -> Tensor:
        """A view: (items, channels, kernel..., positions...)."""
        steps = values.stride()[2:]
        strides = (
            *values.stride()[:2],
            *(step * dilation for step, dilation in zip(steps, module.dilation, strict=True)),
            *(step * stride for step, stride in zip(steps, module.stride, strict=True)),
        )
        return values.as_strided(size, strides, values.storage_offset())

    def reduce(values: Tensor) -> Tensor:
        return windows(values).sum(over).reshape(groups, columns)  # (C, *kernel) -> (G, C/G·k)

    def rows(stride: int, before: int) -> Iterator[Tensor]:
        """Unfolded inputs, some positions of one item at a time."""
        piece = max(1, UNFOLDED_VALUES // (groups * columns * math.prod(outputs[1:])))
        for number, item in enumerate(windows(padded)):  # (channels, kernel..., positions...)
            every_nth = slice(_start(before + number * math.prod(outputs), stride), None, stride)
            if axes == 1:
                item = item[..., every_nth]
            for part in item.split(piece, dim=1 + axes):
                unfolded = part.reshape(groups, columns, -1)
                yield unfolded if axes == 1 else unfolded[..., every_nth]

    return _Positions(padded, items * math.prod(outputs), reduce, rows)


def _start(before: int, stride: int) -> int:
    """The first position that is counted: another one each time, but the same in every run.

    A fixed one would see the same columns of every picture, its edge above all.
    """
    return (before * 2654435761 >> 16) % stride  # multiplicative hash (Knuth)


def _padding(module: nn.Conv1d | nn.Conv2d) -> list[int]:
    """Padding as `torch.nn.functional.pad` takes it: last axis first, both sides."""
    if module.padding == "valid":
        return [0, 0] * len(module.kernel_size)
    if isinstance(module.padding, str):  # "same"
        return list(module._reversed_padding_repeated_twice)
    return [side for amount in reversed(module.padding) for side in (amount, amount)]


def _padding_mode(module: nn.Conv1d | nn.Conv2d) -> str:
    return "constant" if module.padding_mode == "zeros" else module.padding_mode
