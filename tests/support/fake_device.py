"""A pretended GPU for machines without one: real numbers, refused mixtures, counted costs.

torch's own fake tensors do not serve here: they have no values to sample from, and in a build
without CUDA their backward pass ends the process. A `DeviceTensor` holds an ordinary tensor in main
memory and says that it is on `DEVICE`; operations run on what it holds. As on a GPU, an operation
on tensors of both devices is an error. What a GPU does, but slowly, is counted.

A synchronisation is where the host waits for the device, one each (`FakeDevice.waits`):

- an operation whose result the host reads, or whose shape depends on values: `item`, `nonzero`,
  `unique`, a boolean mask as an index;
- a copy from the device to main memory: `cpu`, `tolist`;
- a copy to the device, unless it is `non_blocking` and from pinned memory.

A launch is an operation on the device that is neither a view nor an allocation, copies included.
Attention counts as the products and the softmax that torch takes it apart into here.

Not shown: asynchronous execution, so a pinned buffer that is changed too early; numerics of the
GPU's kernels; dtypes and memory that a GPU lacks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("cuda", 0)
aten = torch.ops.aten
COPIES = {aten._to_copy, aten.copy_}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
ALLOCATIONS = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten._unsafe_view}
READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
WAITS = {aten.is_nonzero, aten.masked_scatter_backward}  # without such a tag; it selects by a mask


class MixedDevicesError(RuntimeError):
    """An operation got tensors of both devices."""


class DeviceTensor(Tensor):
    """A tensor that says that it is on `DEVICE`.

    torch's C++ code takes it for one on "meta", which needs no driver.
    """

    in_memory: Tensor
    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, tensor: Tensor) -> DeviceTensor:
        layout = {"strides": tensor.stride(), "storage_offset": tensor.storage_offset()}
        made: DeviceTensor = Tensor._make_wrapper_subclass(
            cls, tensor.shape, dtype=tensor.dtype, device="meta", **layout
        )
        made.in_memory = tensor
        return made

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, value: DeviceTensor) -> None:
        self.in_memory = value.in_memory

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self) -> str:
        return f"DeviceTensor({self.in_memory!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        raise RuntimeError(f"{func} outside of a FakeDevice")


class FakeDevice(TorchDispatchMode):
    """Within this context `DEVICE` exists, for the thread that entered it.

    Attributes:
        synchronisations: how often the host waited for the device, by operation.
        launches: how many operations the device was given, by operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.synchronisations: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self._pinned: list[Tensor] = []  # kept, so that no other tensor gets their memory

    def __enter__(self) -> FakeDevice:
        self._lifts_on_cpu = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) is then a copy
        self._driver = mock.patch("torch.cuda._lazy_init")
        self._driver.start()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._driver.stop()
        torch._C._set_only_lift_cpu_tensors(self._lifts_on_cpu)

    def count(self, work: Callable[[], object]) -> tuple[int, int]:
        """Do some work; return its synchronisations and its launches."""
        self.synchronisations.clear()
        self.launches.clear()
        work()
        return self.synchronisations.total(), self.launches.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = dict(kwargs or {}), func.overloadpacket
        if kwargs.pop("pin_memory", False):
            self._pinned.append(func(*args, **kwargs))
            return self._pinned[-1]
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        here, there = ends(packet, args, kwargs, tensors)
        if here and packet not in COPIES:
            refuse_mixture(func, args, tensors)
        if packet is aten._to_copy and here and there and is_no_change(args[0], kwargs):
            return DeviceTensor(args[0].in_memory)
        if here or there:
            name = str(packet).removeprefix("aten.")
            if self.waits(func, args, kwargs, here, there):
                self.synchronisations[name] += 1
            if not func.is_view and packet not in ALLOCATIONS:
                self.launches[name] += 1

        of_device = {id(x.in_memory): x for x in tensors if isinstance(x, DeviceTensor)}
        args, kwargs = tree_map_only(DeviceTensor, lambda x: x.in_memory, (args, kwargs))
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        if packet is aten._to_copy:
            kwargs |= {"non_blocking": False}
        result = func(*args, **kwargs)
        if not there:
            return result

        def on_device(x: Tensor) -> Tensor:  # what changed in place is the tensor that came
            return of_device[id(x)] if id(x) in of_device else DeviceTensor(x)

        return tree_map_only(Tensor, on_device, result)

    def waits(self, func: Any, args: Any, kwargs: Any, here: bool, there: bool) -> bool:
        """Tell whether an operation is a synchronisation (see the top of this file)."""
        packet = func.overloadpacket
        if packet in COPIES and not here:
            source, *rest = args[1:] if packet is aten.copy_ else args
            return not (any(rest) or kwargs.get("non_blocking")) or not self.is_pinned(source)
        if packet in COPIES:
            return not there
        if packet in INDEXED:
            return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        return packet in WAITS or not READS.isdisjoint(func.tags)

    def is_pinned(self, tensor: Tensor) -> bool:
        """Tell whether a tensor in main memory is pinned, or a part of one that is."""
        memory = tensor.untyped_storage().data_ptr()
        return any(memory == x.untyped_storage().data_ptr() for x in self._pinned)


def ends(packet: Any, args: Any, kwargs: Any, tensors: Iterable[Tensor]) -> tuple[bool, bool]:
    """Tell whether what an operation reads, and what it makes or changes, is on the device."""
    if packet is aten.copy_:
        return isinstance(args[1], DeviceTensor), isinstance(args[0], DeviceTensor)
    here = any(isinstance(x, DeviceTensor) for x in tensors)
    device = kwargs.get("device")
    return here, here if device is None else torch.device(device).type != "cpu"


def is_no_change(x: Tensor, options: dict[str, Any]) -> bool:
    """Tell whether a `to` on the device returns the tensor itself."""
    return options.get("dtype") in (None, x.dtype) and options.get("memory_format") is None


def refuse_mixture(func: Any, args: Any, tensors: Iterable[Tensor]) -> None:
    """Raise an error where one of an operation's tensors is in main memory.

    A single number may be (a GPU gets it with the kernel's arguments), but not as an index: a GPU
    takes that, and waits for it.
    """
    for x in tensors:
        is_index = func.overloadpacket in INDEXED and any(x is index for index in args[1])
        if not isinstance(x, DeviceTensor) and (x.dim() or is_index):
            raise MixedDevicesError(f"{func} got a tensor {list(x.shape)} in main memory")


class InlineExecutor(Executor):
    """Runs everything in the calling thread, which is the one that the device is in."""

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future
