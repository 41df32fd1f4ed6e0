"""Which of the machine's GPUs are a process': what ``CUDA_VISIBLE_DEVICES`` says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Gpu(NamedTuple):
    """A GPU of the machine.

    Attributes:
        uuid: such as ``GPU-8932f937-d72c-4106-c12f-20bd9faed9f6``.
        instances: of a GPU in MIG mode the UUIDs of its instances, such as ``MIG-…``.
        mig: whether it is in MIG mode: only its instances can be used then.
    """

    uuid: str
    instances: tuple[str, ...] = ()
    mig: bool = False


def visible(text: str | None, gpus: Sequence[Gpu]) -> list[str]:
    """UUIDs of the devices that CUDA shows to a process, in its order.

    As CUDA reads it: indices and beginnings of UUIDs, the first that is none ends the list, one
    that is named twice empties it; a GPU in MIG mode stands for its first instance.

    Args:
        text: the variable; None: it is not set.
        gpus: of the machine, in the order of their PCI addresses, as NVML has them.

    >>> gpus = [Gpu("GPU-a1"), Gpu("GPU-b2"), Gpu("GPU-c3", ("MIG-c31", "MIG-c32"), True)]
    >>> visible("1,0", gpus), visible("GPU-b", gpus), visible("MIG-c32", gpus), visible("2", gpus)
    (['GPU-b2', 'GPU-a1'], ['GPU-b2'], ['MIG-c32'], ['MIG-c31'])
    >>> visible("", gpus), visible("0,-1,1", gpus), visible("0,0", gpus), visible("7", gpus)
    ([], ['GPU-a1'], [], [])
    """
    if text is None:
        return [device for device in map(_of, gpus) if device]
    found: list[str] = []
    for part in text.split(","):
        device = _named(part.strip(), gpus)
        if not device:
            break
        found.append(device)
    return found if len(set(found)) == len(found) else []


def _of(gpu: Gpu) -> str:
    """What a GPU stands for; '' where it is in MIG mode and has no instance."""
    if gpu.mig:
        return gpu.instances[0] if gpu.instances else ""
    return gpu.uuid


def _named(part: str, gpus: Sequence[Gpu]) -> str:
    """The device that a part of the variable names; '' where it is none."""
    if part.isdecimal():
        index = int(part)
        return _of(gpus[index]) if index < len(gpus) else ""
    if part.startswith("MIG-"):
        instances = [one for gpu in gpus for one in gpu.instances]
        return _only([one for one in instances if one.startswith(part)])
    if part.startswith("GPU-"):
        return _only([_of(gpu) for gpu in gpus if gpu.uuid.startswith(part)])
    return ""


def _only(found: Sequence[str]) -> str:
    return found[0] if len(found) == 1 else ""
