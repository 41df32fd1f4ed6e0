"""A fake NVML: functions as nvidia-ml-py has them, over a machine that a test describes.

Names, arguments and shapes of the answers are those of ``pynvml`` itself, constants and errors are
its own; `tests/unit/resources/test_gpu.py` compares the two by inspection.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml


@dataclass
class FakeGpu:
    """A GPU, or an instance of one."""

    uuid: str
    total: int = 80 * 2**30
    used: int = 20 * 2**30
    reserved: int = 2**30
    busy: int = 50
    heat: int = 60
    milliwatts: int = 300_000
    clock: int = 1980
    reasons: int = pynvml.nvmlClocksEventReasonNone
    errors: int = 0
    instances: list[FakeGpu | None] | None = None
    """Of a GPU in MIG mode; None: a place that is not taken."""
    owner: FakeGpu | None = field(default=None, repr=False)
    lacks: set[str] = field(default_factory=set)
    """Functions that this device does not support."""

    def __post_init__(self) -> None:
        for instance in self.instances or ():
            if instance is not None:
                instance.owner = self


class FakeNvml:
    """Stands for the module ``pynvml``.

    Attributes:
        gpus: of the machine.
        broken: the error that every call raises; None: it works.
        calls: names of the functions called, in order.
    """

    def __init__(self, *gpus: FakeGpu, broken: int | None = None) -> None:
        self.gpus = list(gpus)
        self.broken = broken
        self.open = 0
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        """Constants and errors are the real ones; functions are not."""
        if name.startswith(("NVML_", "NVMLError", "nvmlClocksEvent", "nvmlMemory")):
            return getattr(pynvml, name)
        raise AttributeError(name)

    def _enter(self, name: str, device: FakeGpu | None = None) -> None:
        self.calls.append(name)
        if self.broken is not None:
            raise pynvml.NVMLError(self.broken)
        if name != "nvmlInit" and not self.open:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
        if device is not None and name in device.lacks:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def nvmlInit(self) -> None:
        self._enter("nvmlInit")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self._enter("nvmlShutdown")
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        self._enter("nvmlDeviceGetCount")
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        self._enter("nvmlDeviceGetHandleByIndex")
        if index >= len(self.gpus):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:
        self._enter("nvmlDeviceGetHandleByUUID")
        for gpu in self.gpus:
            for one in (gpu, *(gpu.instances or ())):
                if one is not None and one.uuid == uuid:
                    return one
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceGetUUID(self, handle: FakeGpu) -> str:
        self._enter("nvmlDeviceGetUUID")
        return handle.uuid

    def nvmlDeviceGetMigMode(self, device: FakeGpu) -> list[int]:
        self._enter("nvmlDeviceGetMigMode", device)
        on = int(device.instances is not None)
        return [on, on]

    def nvmlDeviceGetMaxMigDeviceCount(self, device: FakeGpu) -> int:
        self._enter("nvmlDeviceGetMaxMigDeviceCount")
        return 7 if device.instances is not None else 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: FakeGpu, index: int) -> FakeGpu:
        self._enter("nvmlDeviceGetMigDeviceHandleByIndex")
        places = device.instances or []
        found = places[index] if index < len(places) else None
        if found is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return found

    def nvmlDeviceGetUtilizationRates(self, handle: FakeGpu) -> SimpleNamespace:
        self._enter("nvmlDeviceGetUtilizationRates", handle)
        if handle.owner is not None or handle.instances is not None:  # as real instances
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(gpu=handle.busy, memory=7)

    def nvmlDeviceGetMemoryInfo(self, handle: FakeGpu, version: int | None = None) -> Any:
        self._enter("nvmlDeviceGetMemoryInfo", handle)
        if version is None:  # the old form counts what the driver keeps for itself
            used = handle.used + handle.reserved
            return SimpleNamespace(total=handle.total, used=used, free=handle.total - used)
        if "memory_v2" in handle.lacks:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        free = handle.total - handle.used - handle.reserved
        return SimpleNamespace(
            version=version,
            total=handle.total,
            reserved=handle.reserved,
            free=free,
            used=handle.used,
        )

    def nvmlDeviceGetTemperature(self, handle: FakeGpu, sensor: int) -> int:
        self._of_the_board("nvmlDeviceGetTemperature", handle)
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return handle.heat

    def nvmlDeviceGetPowerUsage(self, handle: FakeGpu) -> int:
        self._of_the_board("nvmlDeviceGetPowerUsage", handle)
        return handle.milliwatts

    def nvmlDeviceGetClockInfo(self, handle: FakeGpu, type: int) -> int:
        self._of_the_board("nvmlDeviceGetClockInfo", handle)
        assert type == pynvml.NVML_CLOCK_SM
        return handle.clock

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: FakeGpu) -> int:
        self._of_the_board("nvmlDeviceGetCurrentClocksEventReasons", handle)
        return handle.reasons

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: FakeGpu) -> int:
        self._of_the_board("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        return handle.reasons

    def nvmlDeviceGetTotalEccErrors(self, handle: FakeGpu, errorType: int, counterType: int) -> int:
        self._of_the_board("nvmlDeviceGetTotalEccErrors", handle)
        assert errorType == pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
        assert counterType == pynvml.NVML_VOLATILE_ECC
        return handle.errors

    def _of_the_board(self, name: str, handle: FakeGpu) -> None:
        """An instance has no number of its own."""
        self._enter(name, handle)
        if handle.owner is not None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
