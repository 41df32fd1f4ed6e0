"""Processor, memory and disk, compared with what the system says by other ways."""

from __future__ import annotations

import multiprocessing as mp
import os
import resource
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from cmr_monitor_callbacks.resources.host import HostReader
from cmr_monitor_callbacks.resources.machine import ProcessUse, PsutilMachine, container_memory

MIB = 2**20


class Stated:
    """A machine of which a test says everything."""

    def __init__(self) -> None:
        self.uses: dict[int, tuple[float, int]] = {}
        self.own: list[int] = []
        self.looks = 0

    def children(self) -> list[int]:
        self.looks += 1
        return list(self.own)

    def use_of(self, pids: Iterable[int]) -> list[ProcessUse]:
        return [ProcessUse(pid, *self.uses[pid]) for pid in pids if pid in self.uses]

    def memory(self) -> tuple[float, float]:
        return 1000.0, 250.0


def reader(stated: Stated, *disks: Path, limit: tuple[float, float] | None = None) -> HostReader:
    return HostReader(disks, stated, lambda: limit)


def test_processor_time_is_that_of_the_stretch_and_of_the_children() -> None:
    stated, me = Stated(), os.getpid()
    stated.uses = {me: (10.0, 100 * MIB)}
    one = reader(stated)
    first = one.read(100.0)
    assert "cpu_percent" not in first
    assert first["process_rss_mb"] == 100.0
    stated.uses[me] = (13.0, 120 * MIB)
    assert one.read(102.0)["cpu_percent"] == pytest.approx(150.0)
    # a worker is found ten seconds later, with time of its own from before
    stated.uses |= {me: (14.0, 120 * MIB), 7: (50.0, 30 * MIB)}
    stated.own = [7]
    found = one.read(112.0)
    assert (found["cpu_percent"], found["process_rss_mb"]) == (pytest.approx(10.0), 150.0)
    stated.uses |= {me: (14.0, 120 * MIB), 7: (54.0, 30 * MIB)}
    assert one.read(114.0)["cpu_percent"] == pytest.approx(200.0)
    # it ends
    del stated.uses[7]
    stated.uses[me] = (16.0, 120 * MIB)
    assert one.read(116.0)["cpu_percent"] == pytest.approx(100.0)
    assert stated.looks == 2


def test_time_at_rest_is_not_counted() -> None:
    stated, me = Stated(), os.getpid()
    stated.uses = {me: (1.0, MIB)}
    one = reader(stated)
    one.read(0.0)
    one.forget()
    stated.uses[me] = (2.0, MIB)
    assert "cpu_percent" not in one.read(1000.0)
    stated.uses[me] = (3.0, MIB)
    assert one.read(1001.0)["cpu_percent"] == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("limit", "expected"), [(None, 75.0), ((90.0, 100.0), 90.0), ((10.0, 100.0), 75.0)]
)
def test_the_nearer_limit_of_memory_counts(
    limit: tuple[float, float] | None, expected: float
) -> None:
    assert reader(Stated(), limit=limit).read(0.0)["host_memory_percent"] == expected


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    found = reader(Stated(), tmp_path / "not" / "yet").read(0.0)["disk_free_mb"]
    assert found == pytest.approx(shutil.disk_usage(tmp_path).free / MIB, rel=0.05)
    least = min(shutil.disk_usage(path).free for path in (tmp_path, "/dev"))
    both = reader(Stated(), tmp_path, Path("/dev")).read(0.0)["disk_free_mb"]
    assert both == pytest.approx(least / MIB, rel=0.05, abs=64)


def _hold(pipe: mp.connection.Connection) -> None:
    """A child that has used some processor time and holds some memory."""
    held = bytearray(64 * MIB)
    held[::4096] = b"x" * len(held[::4096])
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    pipe.send(os.getpid())
    pipe.recv()


@pytest.fixture
def child() -> Iterable[int]:
    ours, theirs = mp.Pipe()
    process = mp.get_context("fork").Process(target=_hold, args=(theirs,))
    process.start()
    yield ours.recv()
    ours.send(None)
    process.join()


def status_of(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return float(line.split()[1]) * 1024
    raise AssertionError(name)


def ticks_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="there is no /proc")
def test_the_systems_numbers_beside_proc(child: int) -> None:
    one = PsutilMachine()
    assert child in one.children()
    [me, other] = one.use_of([os.getpid(), child])
    assert (me.pid, other.pid) == (os.getpid(), child)
    assert other.rss == pytest.approx(status_of(child, "VmRSS"), rel=0.05)
    assert other.rss > 64 * MIB
    assert other.cpu == pytest.approx(ticks_of(child), abs=0.05)
    assert other.cpu >= 0.25
    usage = resource.getrusage(resource.RUSAGE_SELF)
    assert me.cpu == pytest.approx(usage.ru_utime + usage.ru_stime, rel=0.05, abs=0.1)
    total, available = one.memory()
    assert total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    [line] = [x for x in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in x]
    assert available == pytest.approx(1024 * float(line.split()[1]), rel=0.2)
    assert one.use_of([2**22 + 1]) == []  # there is none of that number


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="there is no /proc")
def test_a_sample_counts_the_children(child: int) -> None:
    found = HostReader([Path("/")], container=lambda: None).read(0.0)
    both = status_of(os.getpid(), "VmRSS") + status_of(child, "VmRSS")
    assert found["process_rss_mb"] >= 0.9 * both / MIB
    assert set(found) == {"process_rss_mb", "host_memory_percent", "disk_free_mb"}


# Containers


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def group(folder: Path, limit: object, used: int, cache: int) -> None:
    write(folder / "memory.max", limit)
    write(folder / "memory.current", used)
    write(folder / "memory.stat", f"anon 1\ninactive_file {cache}")


def test_a_container_of_version_2(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    write(own, "0::/pod/one")
    group(root / "pod" / "one", "max", 700, 100)
    group(root / "pod", 1000, 900, 200)
    assert container_memory(root, own) == (700.0, 1000.0)
    group(root / "pod" / "one", 800, 700, 20)  # nearer to its limit than the one around it
    assert container_memory(root, own) == (680.0, 800.0)


def test_a_container_that_sees_its_group_as_the_root(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    write(own, "0::/")
    group(root, 2000, 1500, 500)
    assert container_memory(root, own) == (1000.0, 2000.0)


def test_a_container_of_version_1(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    write(own, "4:cpu,cpuacct:/x\n7:memory:/docker/ab\n0::/")
    folder = root / "memory" / "docker" / "ab"
    write(folder / "memory.limit_in_bytes", 4096)
    write(folder / "memory.usage_in_bytes", 2048)
    write(folder / "memory.stat", "total_inactive_file 1024")
    write(root / "memory" / "memory.limit_in_bytes", 9223372036854771712)
    assert container_memory(root, own) == (1024.0, 4096.0)


def test_no_container(tmp_path: Path) -> None:
    assert container_memory(tmp_path, tmp_path / "missing") is None
    write(tmp_path / "own", "0::/a")
    assert container_memory(tmp_path, tmp_path / "own") is None
