"""A device that is not the CPU, on a machine that has no other: what is on it says so, and PyTorch's rules for two devices hold.

    with another_device():
        model.to("cuda"); torch.zeros(3, device="cuda"); ...

Each tensor on it wraps one on the CPU, which computes. To Python it is on "cuda"; to PyTorch's core on "meta", the one device that
a CPU build knows and has no kernels of its own for. As on a GPU, an operation that mixes both devices raises RuntimeError, but for
numbers of no dimension, indices on the CPU, and copies; what needs the numbers themselves (`numpy`) has to bring them back. As on MPS
there is no float64.
"""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

GPU, CORE = torch.device("cuda", 0), torch.device("meta", 1)      # its names; transformers builds models on "meta", of no number
aten = torch.ops.aten
MOVES = {aten._to_copy.default, aten.copy_.default}      # the operations that may have both devices
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default,
           aten._unsafe_index_put.default}


class Elsewhere(torch.Tensor):
    """A tensor on the other device; `here`: the one that computes."""
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here):
        if here.dtype == torch.float64:
            raise TypeError("MPS has no float64")
        one = torch.Tensor._make_wrapper_subclass(cls, here.size(), strides=here.stride(), storage_offset=here.storage_offset(),
                                                  dtype=here.dtype, device=CORE, requires_grad=here.requires_grad)
        one.here = here
        return one

    def __repr__(self, **_):
        return f"Elsewhere({self.here})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} outside of another_device()")


def here(x):
    """What computes in the place of x, if that is elsewhere."""
    return x.here if isinstance(x, Elsewhere) else x


class Rules(TorchDispatchMode):
    """What may be computed of tensors here and there, and where the result is."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        with self:      # in inference mode what PyTorch has made of other operations arrives whole
            if (parts := func.decompose(*args, **kwargs)) is not NotImplemented:
                return parts
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        there, wanted = [isinstance(x, Elsewhere) for x in tensors], kwargs.get("device")
        if any(there) and func not in MOVES:
            strangers = [x for x, away in zip(tensors, there) if not away and x.dim()]
            if func in INDEXED and isinstance(args[0], Elsewhere):      # indices may be on the CPU, values not
                strangers = [x for x in strangers if not any(x is index for index in args[1])]
            assert not any(x.is_meta for x in tensors if not isinstance(x, Elsewhere)), f"{func}: a tensor that another_device lost"
            if strangers:
                shape = tuple(strangers[0].shape)
                raise RuntimeError(f"{func}: expected all tensors to be on the same device, found cuda:0 and cpu {shape}")
        if not any(there) and wanted != CORE:
            return func(*args, **kwargs)
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        if kwargs.get("generator") is not None:
            raise RuntimeError(f"{func}: a generator of the CPU for a tensor on cuda:0")
        away = wanted == CORE if wanted is not None else isinstance(args[0], Elsewhere) if func in MOVES else any(there)
        out = func(*tree_map(here, args), **tree_map(here, kwargs))
        if not away:
            return out
        same = {id(here(x)): x for x in tensors}      # what an operation in place gives back
        return tree_map(lambda x: (same[id(x)] if id(x) in same else Elsewhere(x)) if isinstance(x, torch.Tensor) else x, out)


class Names(TorchFunctionMode):
    """Python says and hears "cuda" where the core has "meta"."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if isinstance(args[0] if args else None, Elsewhere):
            name = getattr(getattr(func, "__self__", None), "__name__", "")
            if name == "device":
                return GPU
            if name in ("is_cuda", "is_cpu", "is_meta"):
                return name == "is_cuda"
            if func in (torch.Tensor.numpy, torch.Tensor.__array__):
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            if func in (torch.Tensor.tolist, torch.Tensor.data_ptr, torch.Tensor.untyped_storage):
                return func(args[0].here)
            if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):      # the core would make tensors on "meta" of what is none
                args = [args[0], tree_map(lambda x: torch.tensor(x) if isinstance(x, list) else x, args[1],
                                          is_leaf=lambda x: isinstance(x, list)),
                        *(torch.tensor(x, dtype=args[0].dtype) if isinstance(x, (int, float)) else x for x in args[2:])]

        def core(x):
            if isinstance(x, str) and x.split(":")[0] == "cuda" or isinstance(x, torch.device) and x.type == "cuda":
                return CORE
            return x
        args, kwargs = tree_map(core, args), tree_map(core, kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == CORE:      # which would forget the numbers
            return func(*args, **{**kwargs, "device": "cpu"}).to(CORE)
        return func(*args, **kwargs)


@contextmanager
def another_device():
    """While it lasts there is a device "cuda"; its tensors are of no use afterwards."""
    with Names(), Rules():
        yield
