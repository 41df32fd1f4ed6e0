"""The GPU as NVML sees it: a driver that is missing, or lost during the run, is no failure."""

from __future__ import annotations

import importlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from cmr_monitor_callbacks.resources.visible import Gpu, visible

logger = logging.getLogger(__name__)
_MIB: Final = 2.0**20
_FIRST_PAUSE: Final = 10.0
_LONGEST_PAUSE: Final = 600.0
HELD_BACK: Final = (
    "HwSlowdown",
    "SwThermalSlowdown",
    "HwThermalSlowdown",
    "HwPowerBrakeSlowdown",
)
"""Reasons for low clocks that are a fault: heat, or the power supply."""


class _Device(NamedTuple):
    """A device of this process.

    Attributes:
        uuid: of the GPU, or of the MIG instance.
        handle: NVML's.
        board: handle of the whole GPU: what an instance has no number of its own of.
    """

    uuid: str
    handle: Any
    board: Any


class GpuReader:
    """Reads the GPUs that a process uses.

    Args:
        wanted: says which, as CUDA's numbers and their UUIDs ('' where not known); asked at each
            sample, for CUDA may not be initialised yet.
        load: gives the module ``pynvml`` of nvidia-ml-py.

    >>> def absent():
    ...     raise ImportError("no module named pynvml")
    >>> GpuReader(lambda: [(0, "")], absent).read(0.0)
    {}
    """

    def __init__(
        self,
        wanted: Callable[[], Sequence[tuple[int, str]]],
        load: Callable[[], Any] = lambda: importlib.import_module("pynvml"),
    ) -> None:
        self._wanted = wanted
        self._load = load
        self._nvml: Any = None
        self._gpus: list[Gpu] = []
        self._devices: dict[tuple[int, str], _Device | None] = {}
        self._faults: dict[str, float] = {}
        self._was_there = self._said = False
        self._retry_at = -math.inf
        self._pause = _FIRST_PAUSE

    def read(self, now: float) -> dict[str, float]:
        """One sample; what is not known is left out, and where there is no driver all of it.

        Args:
            now: in seconds; a lost driver is tried again, at longer and longer pauses.
        """
        wanted = self._wanted()
        if not wanted or now < self._retry_at:
            return {}
        try:
            if self._nvml is None:
                self._open()
            devices = [device for device in map(self._device, wanted) if device is not None]
            numbers = [self._numbers(device) for device in devices]
        except Exception as error:
            if not self._is_of_nvml(error):
                raise
            self._lose(error, now)
            return {}
        self._was_there, self._said, self._pause = True, False, _FIRST_PAUSE
        return _together(numbers)

    def close(self) -> None:
        """Let go of the driver."""
        nvml, self._nvml = self._nvml, None
        self._devices = {}
        if nvml is not None:
            try:
                nvml.nvmlShutdown()
            except nvml.NVMLError as error:  # it is gone
                logger.debug("NVML could not be shut down: %s", error)

    # -- the driver -----------------------------------------------------------------------------

    def _open(self) -> None:
        nvml = self._load()
        nvml.nvmlInit()
        self._nvml = nvml
        self._gpus = []
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            mig = self._ask(nvml.nvmlDeviceGetMigMode, handle)
            is_mig = mig is not None and mig[0] == nvml.NVML_DEVICE_MIG_ENABLE
            instances = tuple(self._instances(handle)) if is_mig else ()
            self._gpus.append(Gpu(nvml.nvmlDeviceGetUUID(handle), instances, is_mig))

    def _instances(self, handle: Any) -> Iterable[str]:
        nvml = self._nvml
        for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            except nvml.NVMLError_NotFound:  # the places need not all be taken
                continue
            yield nvml.nvmlDeviceGetUUID(instance)

    def _is_of_nvml(self, error: Exception) -> bool:
        """Whether there is no driver, or no more; anything else is a defect."""
        if isinstance(error, ImportError):
            return True
        return any(kind.__name__ == "NVMLError" for kind in type(error).__mro__)

    def _lose(self, error: Exception, now: float) -> None:
        self.close()
        self._retry_at = now + self._pause
        self._pause = min(_LONGEST_PAUSE, 2.0 * self._pause)
        if self._said:
            return
        self._said = True
        if self._was_there:
            logger.warning(
                "the GPU's driver is lost (%s): its numbers are no data until it is back", error
            )
        else:
            logger.info("there is no GPU driver (%s): the GPU's numbers are no data", error)

    # -- devices --------------------------------------------------------------------------------

    def _device(self, wanted: tuple[int, str]) -> _Device | None:
        if wanted not in self._devices:
            self._devices[wanted] = self._find(*wanted)
        return self._devices[wanted]

    def _find(self, index: int, uuid: str) -> _Device | None:
        """By the UUID that CUDA gives, where it is initialised; else as the environment says."""
        nvml = self._nvml
        everything = [one for gpu in self._gpus for one in (gpu.uuid, *gpu.instances)]
        named = next((one for one in everything if uuid and one.endswith(uuid)), "")
        if not named:
            shown = visible(os.environ.get("CUDA_VISIBLE_DEVICES"), self._gpus)
            named = shown[index] if index < len(shown) else ""
        if not named:
            return None
        owner = next(gpu for gpu in self._gpus if named == gpu.uuid or named in gpu.instances)
        if owner.mig and named == owner.uuid and owner.instances:
            named = owner.instances[0]
        board = nvml.nvmlDeviceGetHandleByUUID(owner.uuid)
        handle = board if named == owner.uuid else nvml.nvmlDeviceGetHandleByUUID(named)
        return _Device(named, handle, board)

    def _ask(self, question: Callable[..., Any], *about: Any) -> Any:
        """An answer; None where this device has none, or not for us."""
        nvml = self._nvml
        try:
            return question(*about)
        except (
            nvml.NVMLError_NotSupported,
            nvml.NVMLError_FunctionNotFound,
            nvml.NVMLError_NoPermission,
            nvml.NVMLError_InvalidArgument,
        ):
            return None

    def _numbers(self, device: _Device) -> dict[str, float]:
        nvml, board = self._nvml, device.board
        out: dict[str, float] = {}
        busy = self._ask(nvml.nvmlDeviceGetUtilizationRates, device.handle)
        if busy is not None:
            out["gpu_utilization"] = float(busy.gpu)
        memory = self._memory(device.handle)
        if memory is not None and memory.total > 0:
            out["gpu_memory_used_mb"] = memory.used / _MIB
            out["gpu_memory_percent"] = 100.0 * memory.used / memory.total
        heat = self._ask(nvml.nvmlDeviceGetTemperature, board, nvml.NVML_TEMPERATURE_GPU)
        power = self._ask(nvml.nvmlDeviceGetPowerUsage, board)
        clock = self._ask(nvml.nvmlDeviceGetClockInfo, board, nvml.NVML_CLOCK_SM)
        for name, value, scale in (
            ("gpu_temperature", heat, 1.0),
            ("gpu_power", power, 1e-3),  # milliwatts
            ("gpu_clock", clock, 1.0),
        ):
            if value is not None:
                out[name] = value * scale
        return out | self._reasons(board) | self._ecc(device)

    def _memory(self, handle: Any) -> Any:
        """As nvidia-smi has it: without what the driver keeps for itself, where it tells that."""
        nvml = self._nvml
        found = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2)
        return found or self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)

    def _reasons(self, board: Any) -> dict[str, float]:
        """Why the clocks are low: 1 or 0."""
        nvml = self._nvml
        found = self._ask(nvml.nvmlDeviceGetCurrentClocksEventReasons, board)
        if found is None:  # drivers before 535 know it by another name
            found = self._ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, board)
        if found is None:
            return {}
        fault = sum(getattr(nvml, f"nvmlClocksEventReason{name}") for name in HELD_BACK)
        return {
            "gpu_throttled_share": float(bool(found & fault)),
            "gpu_power_capped_share": float(bool(found & nvml.nvmlClocksEventReasonSwPowerCap)),
        }

    def _ecc(self, device: _Device) -> dict[str, float]:
        """Errors since the first sample: the driver counts them since it was loaded."""
        nvml = self._nvml
        kinds = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        count = self._ask(nvml.nvmlDeviceGetTotalEccErrors, device.board, *kinds)
        if count is None:
            return {}
        first = self._faults.setdefault(device.uuid, float(count))
        if count < first:  # the driver was loaded anew
            first = self._faults[device.uuid] = 0.0
        return {"gpu_ecc_errors": float(count) - first}


_SUMS: Final = ("gpu_memory_used_mb", "gpu_power", "gpu_ecc_errors")
_MEANS: Final = ("gpu_utilization", "gpu_clock")


def _together(numbers: Sequence[dict[str, float]]) -> dict[str, float]:
    """One sample of a process that uses several GPUs: sums, means, else the greatest.

    >>> _together([{"gpu_power": 100.0, "gpu_temperature": 60.0}, {"gpu_power": 50.0}])
    {'gpu_power': 150.0, 'gpu_temperature': 60.0}
    """
    out = {}
    for name in dict.fromkeys(name for one in numbers for name in one):
        values = [one[name] for one in numbers if name in one]
        total = math.fsum(values)
        out[name] = total if name in _SUMS else total / len(values)
        if name not in _SUMS + _MEANS:
            out[name] = max(values)
    return out
