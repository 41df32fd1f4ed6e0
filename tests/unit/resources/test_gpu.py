"""The GPU's numbers: from a fake NVML whose calls are shaped as the real one's, and from a GPU."""

from __future__ import annotations

import inspect
import logging
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pynvml
import pytest
import torch

from cmr_monitor_callbacks.resources.allocator import read_allocator, used_devices, uuid_of
from cmr_monitor_callbacks.resources.gpu import HELD_BACK, GpuReader
from tests.fake_nvml import FakeGpu, FakeNvml

A, B = "GPU-aaaa-1111", "GPU-bbbb-2222"
ONE, TWO = "MIG-cccc-0001", "MIG-cccc-0002"
NUMBERS = {
    "gpu_utilization": 50.0,
    "gpu_memory_used_mb": 20 * 1024.0,
    "gpu_memory_percent": 25.0,
    "gpu_temperature": 60.0,
    "gpu_power": 300.0,
    "gpu_clock": 1980.0,
    "gpu_throttled_share": 0.0,
    "gpu_power_capped_share": 0.0,
    "gpu_ecc_errors": 0.0,
}


@pytest.fixture(autouse=True)
def no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def reader(nvml: FakeNvml, *wanted: tuple[int, str]) -> GpuReader:
    return GpuReader(lambda: wanted or ((0, ""),), lambda: nvml)


def mig() -> FakeGpu:
    """A GPU of two instances, the place between them free."""
    one = FakeGpu(ONE, total=20 * 2**30, used=5 * 2**30)
    two = FakeGpu(TWO, total=20 * 2**30, used=10 * 2**30)
    return FakeGpu(B, heat=70, milliwatts=250_000, instances=[one, None, two])


def functions(of: Any) -> dict[str, Any]:
    return {
        name: function
        for name, function in inspect.getmembers(of, callable)
        if name.startswith("nvml") and not name.startswith("nvmlMemory")
    }


def test_the_fake_has_the_real_ones_functions_and_arguments() -> None:
    fake = functions(FakeNvml())
    assert len(fake) >= 16
    for name, function in fake.items():
        real = inspect.signature(getattr(pynvml, name))
        got = inspect.signature(function)
        assert [(p.name, p.default) for p in got.parameters.values()] == [
            (p.name, p.default) for p in real.parameters.values()
        ], name


def test_the_fake_answers_in_the_real_ones_shapes() -> None:
    """Structures have the fields that the real ones have; two numbers of a MIG mode are a list."""
    nvml = FakeNvml(FakeGpu(A))
    nvml.nvmlInit()
    gpu = nvml.gpus[0]
    for answer, structure in (
        (nvml.nvmlDeviceGetMemoryInfo(gpu), pynvml.c_nvmlMemory_t),
        (nvml.nvmlDeviceGetMemoryInfo(gpu, pynvml.nvmlMemory_v2), pynvml.c_nvmlMemory_v2_t),
        (nvml.nvmlDeviceGetUtilizationRates(gpu), pynvml.c_nvmlUtilization_t),
    ):
        assert set(vars(answer)) == {name for name, *_ in structure._fields_}
    source = inspect.getsource(pynvml.nvmlDeviceGetMigMode)
    assert "return [c_currentMode.value, c_pendingMode.value]" in source
    assert isinstance(nvml.nvmlDeviceGetMigMode(gpu), list)


def test_what_the_reader_calls_is_in_the_real_one() -> None:
    source = inspect.getsource(sys.modules[GpuReader.__module__])
    named = {word for word in source.replace("(", " ").replace(",", " ").split() if "nvml." in word}
    names = {word.partition("nvml.")[2].rstrip(":)]}") for word in named if "{" not in word}
    names |= {f"nvmlClocksEventReason{name}" for name in HELD_BACK}
    assert len(names) > 20
    assert not [name for name in names if name and not hasattr(pynvml, name)]


def test_one_gpu() -> None:
    nvml = FakeNvml(FakeGpu(A))
    assert reader(nvml).read(0.0) == NUMBERS


def test_an_older_driver() -> None:
    """Without the second form of the memory's numbers the first; without other numbers none."""
    nvml = FakeNvml(
        FakeGpu(
            A,
            lacks={
                "memory_v2",
                "nvmlDeviceGetMigMode",
                "nvmlDeviceGetCurrentClocksEventReasons",
                "nvmlDeviceGetTotalEccErrors",
                "nvmlDeviceGetPowerUsage",
            },
        )
    )
    expected = {**NUMBERS, "gpu_memory_used_mb": 21 * 1024.0, "gpu_memory_percent": 26.25}
    del expected["gpu_ecc_errors"], expected["gpu_power"]
    assert reader(nvml).read(0.0) == expected


@pytest.mark.parametrize(
    ("chosen", "index", "heat"),
    [
        (None, 0, 60.0),
        (None, 1, 71.0),
        ("1", 0, 71.0),
        ("1,0", 1, 60.0),
        (B, 0, 71.0),
        ("GPU-b", 0, 71.0),
        (f"{B},{A}", 1, 60.0),
        ("", 0, None),
        ("1", 1, None),
        ("-1,0", 0, None),
        ("0,5,1", 1, None),
    ],
)
def test_which_of_two_gpus_is_this_process(
    chosen: str | None, index: int, heat: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    nvml = FakeNvml(FakeGpu(A), FakeGpu(B, heat=71))
    assert reader(nvml, (index, "")).read(0.0).get("gpu_temperature") == heat


def test_cudas_own_word_is_taken_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA sorts GPUs by speed unless it is told otherwise: its UUID says which one it means."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    nvml = FakeNvml(FakeGpu(A), FakeGpu(B, heat=71))
    assert reader(nvml, (0, "bbbb-2222")).read(0.0)["gpu_temperature"] == 71.0


def test_a_process_that_uses_both() -> None:
    nvml = FakeNvml(
        FakeGpu(A, busy=20, clock=1000),
        FakeGpu(B, busy=60, clock=2000, heat=80, used=40 * 2**30, milliwatts=100_000),
    )
    nvml.gpus[1].reasons = pynvml.nvmlClocksEventReasonSwThermalSlowdown
    found = reader(nvml, (0, ""), (1, "")).read(0.0)
    assert found == {
        "gpu_utilization": 40.0,
        "gpu_memory_used_mb": 60 * 1024.0,
        "gpu_memory_percent": 50.0,
        "gpu_temperature": 80.0,
        "gpu_power": 400.0,
        "gpu_clock": 1500.0,
        "gpu_throttled_share": 1.0,
        "gpu_power_capped_share": 0.0,
        "gpu_ecc_errors": 0.0,
    }


@pytest.mark.parametrize("chosen", [TWO, "MIG-cccc-0002", "1", None])
def test_an_instance_of_a_gpu(chosen: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is its own, heat and power are the board's, and nobody knows how busy it is."""
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    nvml = FakeNvml(FakeGpu(A), mig())
    found = reader(nvml, (1 if chosen is None else 0, "")).read(0.0)
    used = 10 if chosen is not None and chosen.startswith("MIG") else 5
    assert "gpu_utilization" not in found
    assert found["gpu_memory_used_mb"] == used * 1024.0
    assert found["gpu_memory_percent"] == 5.0 * used
    assert (found["gpu_temperature"], found["gpu_power"]) == (70.0, 250.0)


def test_cuda_names_an_instance() -> None:
    found = reader(FakeNvml(FakeGpu(A), mig()), (0, "cccc-0002")).read(0.0)
    assert found["gpu_memory_used_mb"] == 10 * 1024.0


@pytest.mark.parametrize("reason", HELD_BACK)
def test_reasons_of_low_clocks(reason: str) -> None:
    nvml = FakeNvml(FakeGpu(A, reasons=getattr(pynvml, f"nvmlClocksEventReason{reason}")))
    found = reader(nvml).read(0.0)
    assert (found["gpu_throttled_share"], found["gpu_power_capped_share"]) == (1.0, 0.0)


def test_the_power_limit_and_an_idle_gpu_are_no_faults() -> None:
    reasons = pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonGpuIdle
    found = reader(FakeNvml(FakeGpu(A, reasons=reasons))).read(0.0)
    assert (found["gpu_throttled_share"], found["gpu_power_capped_share"]) == (0.0, 1.0)


def test_errors_are_counted_from_the_first_sample_on() -> None:
    nvml = FakeNvml(FakeGpu(A, errors=7))
    one = reader(nvml)
    assert one.read(0.0)["gpu_ecc_errors"] == 0.0
    nvml.gpus[0].errors = 9
    assert one.read(2.0)["gpu_ecc_errors"] == 2.0
    nvml.gpus[0].errors = 1  # the driver was loaded anew
    assert one.read(4.0)["gpu_ecc_errors"] == 1.0


@pytest.mark.parametrize(
    "missing", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED]
)
def test_no_driver_is_said_once_and_is_no_failure(
    missing: int, caplog: pytest.LogCaptureFixture
) -> None:
    nvml = FakeNvml(FakeGpu(A), broken=missing)
    one = reader(nvml)
    with caplog.at_level(logging.INFO, "cmr_monitor_callbacks"):
        assert [one.read(float(now)) for now in range(0, 1000, 5)] == [{}] * 200
    [record] = caplog.records
    assert record.levelno == logging.INFO
    assert "there is no GPU driver" in record.message
    # after 10, 20, 40 … s
    assert nvml.calls.count("nvmlInit") == 7
    one.close()


def test_a_library_that_is_not_installed(caplog: pytest.LogCaptureFixture) -> None:
    def load() -> Any:
        raise ImportError("no module named pynvml")

    one = GpuReader(lambda: [(0, "")], load)
    with caplog.at_level(logging.INFO, "cmr_monitor_callbacks"):
        assert one.read(0.0) == one.read(30.0) == {}
    assert len(caplog.records) == 1


def test_nothing_is_asked_for_where_no_gpu_is_used() -> None:
    nvml = FakeNvml(FakeGpu(A))
    assert GpuReader(lambda: [], lambda: nvml).read(0.0) == {}
    assert nvml.calls == []


@pytest.mark.parametrize(
    "error",
    [pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_UNKNOWN, pynvml.NVML_ERROR_UNINITIALIZED],
)
def test_a_driver_that_is_lost_and_comes_back(error: int, caplog: pytest.LogCaptureFixture) -> None:
    nvml = FakeNvml(FakeGpu(A))
    one = reader(nvml)
    assert one.read(0.0) == NUMBERS
    nvml.broken = error
    with caplog.at_level(logging.INFO, "cmr_monitor_callbacks"):
        assert [one.read(now) for now in (2.0, 4.0, 6.0, 13.0, 15.0)] == [{}] * 5
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "the GPU's driver is lost" in record.message
    tried = len(nvml.calls)
    nvml.broken = None
    assert one.read(20.0) == {}  # not yet: 20 s after the second try
    assert len(nvml.calls) == tried
    assert one.read(33.0) == NUMBERS
    nvml.broken = error
    with caplog.at_level(logging.INFO, "cmr_monitor_callbacks"):
        one.read(35.0)
    assert len(caplog.records) == 2


def test_a_defect_is_no_lost_driver() -> None:
    nvml = FakeNvml(FakeGpu(A))
    nvml.gpus[0].used = "much"  # type: ignore[assignment]
    with pytest.raises(TypeError):
        reader(nvml).read(0.0)


def test_the_driver_is_let_go() -> None:
    nvml = FakeNvml(FakeGpu(A))
    one = reader(nvml)
    one.read(0.0)
    assert nvml.open == 1
    one.close()
    one.close()
    assert nvml.open == 0


class FakeCuda:
    """What is read of ``torch.cuda``."""

    def __init__(self, *devices: tuple[int, int, int], ready: bool = True) -> None:
        self.devices, self.ready = devices, ready

    def is_initialized(self) -> bool:
        return self.ready

    def device_count(self) -> int:
        return len(self.devices)

    def memory_stats(self, device: int) -> dict[str, int]:
        names = ("allocated_bytes.all.current", "reserved_bytes.all.current")
        allocated, reserved, peak = self.devices[device]
        found = dict(zip(names, (allocated, reserved), strict=True))
        return {**found, "allocated_bytes.all.peak": peak}


MIB = 2**20


@pytest.mark.parametrize(
    ("devices", "used", "expected"),
    [
        ([(30 * MIB, 40 * MIB, 35 * MIB), (0, 0, 0)], [0], (35.0, 40.0, 0.25)),
        ([(10 * MIB, 20 * MIB, 20 * MIB)] * 2, [0, 1], (40.0, 40.0, 0.5)),
    ],
)
def test_torchs_allocator(
    devices: Sequence[tuple[int, int, int]], used: list[int], expected: tuple[float, ...]
) -> None:
    cuda = FakeCuda(*devices)
    assert used_devices(cuda) == used
    found = read_allocator(used, cuda)
    names = ("gpu_allocated_peak_mb", "gpu_reserved_mb", "gpu_fragmentation")
    assert tuple(found[name] for name in names) == expected
    assert "gpu_fragmentation" not in read_allocator([0], FakeCuda((0, 0, 0)))


def test_asking_does_not_initialise_cuda() -> None:
    before = torch.cuda.is_initialized()
    assert used_devices(FakeCuda((1, 1, 1), ready=False)) == []
    assert read_allocator([0], FakeCuda((1, 1, 1), ready=False)) == {}
    used_devices(), read_allocator([0]), uuid_of(0)
    assert torch.cuda.is_initialized() is before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_real_gpu_beside_nvidia_smi() -> None:
    """Utilization and memory within 5 % of what nvidia-smi says, under a steady load."""
    tensor = torch.rand(4096, 4096, device="cuda")
    held = torch.zeros(2**30, dtype=torch.uint8, device="cuda")
    one = GpuReader(lambda: [(0, uuid_of(0))])
    query = "--query-gpu=uuid,utilization.gpu,memory.used,memory.total,temperature.gpu"
    uuid = f"GPU-{uuid_of(0)}"

    def load() -> None:
        for _ in range(200):
            torch.mm(tensor, tensor)
        torch.cuda.synchronize()

    for _ in range(10):
        load()
    process = subprocess.Popen(
        ["nvidia-smi", query, "--format=csv,noheader,nounits"], stdout=subprocess.PIPE, text=True
    )
    while process.poll() is None:
        load()
    found = one.read(0.0)
    assert process.stdout is not None
    rows = [line.split(", ") for line in process.stdout.read().splitlines()]
    [row] = [row for row in rows if row[0] == uuid]
    busy, used, total, heat = map(float, row[1:])
    assert found["gpu_utilization"] == pytest.approx(busy, abs=5)
    assert found["gpu_memory_used_mb"] == pytest.approx(used, rel=0.05)
    assert found["gpu_memory_percent"] == pytest.approx(100 * used / total, rel=0.05)
    assert found["gpu_temperature"] == pytest.approx(heat, abs=5)
    allocator = read_allocator([0])
    assert allocator["gpu_allocated_peak_mb"] >= held.nbytes / MIB
    assert 0.0 <= allocator["gpu_fragmentation"] < 1.0
    one.close()
