"""Memory of GPUs. NVML is a small double here: no GPU can be made to be there, or to fail."""

from __future__ import annotations

import subprocess
import sys
import types

import psutil
import pytest

import nbinfer
from nbinfer import ModelParams, VLLMInferenceEngine, gpu, measure, settings
from nbinfer.residents import pool

from .conftest import echo, pid_of

GB = 10**9


class Fault(Exception):
    """As every error of NVML."""


class Nvml(types.ModuleType):
    """Two GPUs of 80 GB; ``compute`` and ``graphics`` are what each runs."""

    NVMLError = Fault

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.calls: list[str] = []
        self.driver = True
        self.lost: set[int] = set()
        self.silent: set[int] = set()
        self.used = [30 * GB, 10 * GB]
        self.compute: list[list[tuple[int, int | None]]] = [[], []]
        self.graphics: list[list[tuple[int, int | None]]] = [[], []]

    def nvmlInit(self):
        self.calls.append("init")
        if not self.driver:
            raise Fault("Driver Not Loaded")

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):
        if index in self.lost:
            raise Fault("GPU is lost")
        return index

    def nvmlDeviceGetMemoryInfo(self, handle):
        used = self.used[handle]
        return types.SimpleNamespace(total=80 * GB, used=used, free=80 * GB - used)

    def nvmlDeviceGetUUID(self, handle):
        return f"GPU-{'ab'[handle]}0"

    def nvmlDeviceGetName(self, handle):
        return "Test GPU"

    def listed(self, handle, what):
        self.calls.append("list")
        if handle in self.silent:
            raise Fault("Not Supported")
        return [types.SimpleNamespace(pid=p, usedGpuMemory=u) for p, u in what[handle]]

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return self.listed(handle, self.compute)

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle):
        return self.listed(handle, self.graphics)


def forget() -> None:
    for cached in (gpu._nvml, gpu._has_driver, gpu._unknown):
        cached.cache_clear()


@pytest.fixture
def nvml(clean, monkeypatch):
    """A machine with two GPUs; processes below 100 have none open."""
    made = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    forget()
    monkeypatch.setattr(gpu, "_has_driver", lambda: True)
    monkeypatch.setattr(gpu, "_opened_a_device", lambda pid: pid >= 100)
    monkeypatch.setattr(gpu, "_in_first_namespace", lambda: True)
    yield made
    monkeypatch.undo()
    forget()


# -------------------------------------------------------------------- what there is


def test_devices(nvml):
    first, second = gpu.devices()
    assert first == gpu.Device(0, "GPU-a0", "Test GPU", 80 * GB, 50 * GB, 30 * GB)
    assert (second.index, second.used_bytes) == (1, 10 * GB)
    nvml.lost = {0}
    assert gpu.devices() == [second]


def test_a_missing_driver_is_asked_for_once(nvml):
    nvml.driver = False
    for _ in range(3):
        assert gpu.devices() == []
        assert gpu.process_tree_device_bytes([100]) == 0
        assert gpu.share([]) is None
    assert nvml.calls == ["init"]


def test_without_the_binding_there_is_no_device(nvml, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu.devices() == []
    assert gpu.process_tree_device_bytes([100]) == 0


@pytest.mark.parametrize(
    ("given", "indices"),
    [("1,0", [1, 0]), ("1", [1]), ("", []), ("-1", []), ("GPU-b", [1]), ("0,7,1", [0])],
)
def test_what_cuda_sees(nvml, monkeypatch, given, indices):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert [d.index for d in gpu.visible()] == indices


# ------------------------------------------------------------------------- by process


def test_a_trees_processes_are_summed_over_both_devices(nvml):
    nvml.compute = [[(100, 5 * GB), (101, 2 * GB), (999, 20 * GB)], [(100, GB)]]
    assert gpu.process_tree_device_bytes([7, 100, 101, 102]) == 8 * GB
    assert gpu.process_tree_device_bytes([100, 101], index=1) == GB
    assert gpu.process_tree_device_bytes([102]) == 0  # it is gone, or holds nothing


def test_one_that_computes_and_draws_is_counted_once(nvml):
    nvml.compute = [[(100, 5 * GB)], []]
    nvml.graphics = [[(100, 5 * GB), (101, GB)], []]
    assert gpu.process_tree_device_bytes([100, 101]) == 6 * GB


def test_a_process_that_has_no_gpu_open_asks_nobody(nvml):
    nvml.compute = [[(7, GB)], []]  # a stranger's, by the machine's own numbers
    assert gpu.process_tree_device_bytes([7, 8]) == 0
    assert nvml.calls == []


def test_what_is_not_told_is_unknown_and_said_once(nvml, capsys):
    nvml.compute = [[(100, None), (101, GB)], []]
    assert gpu.process_tree_device_bytes([100, 101]) is None
    assert gpu.process_tree_device_bytes([100]) is None
    assert gpu.process_tree_device_bytes([101]) == GB
    assert capsys.readouterr().err.count("is unknown") == 1


def test_a_device_that_cannot_list_is_unknown(nvml):
    nvml.compute = [[(100, GB)], []]
    nvml.silent = {1}
    assert gpu.process_tree_device_bytes([100]) is None
    assert gpu.process_tree_device_bytes([100], index=0) == GB
    assert gpu.process_tree_device_bytes([7]) == 0


def test_in_a_container_of_other_numbers_it_is_unknown(nvml, monkeypatch):
    monkeypatch.setattr(gpu, "_in_first_namespace", lambda: False)
    nvml.compute = [[(70_100, 5 * GB)], []]
    assert gpu.process_tree_device_bytes([100]) is None
    nvml.compute = [[(100, 5 * GB)], []]  # newer drivers translate
    assert gpu.process_tree_device_bytes([100]) == 5 * GB
    assert gpu.process_tree_device_bytes([7]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_who_has_a_gpu_open():
    opened = "import sys; print(flush=True); sys.stdin.readline()"
    with subprocess.Popen(
        [sys.executable, "-c", opened], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        assert not gpu._opened_a_device(process.pid)
        process.stdin.write(b"\n")
        process.stdin.close()
        process.wait()
        assert not gpu._opened_a_device(process.pid)  # it has ended


# ------------------------------------------------------------------------- the share


@pytest.mark.parametrize(
    ("free", "budget", "held", "fraction"),
    [
        (80 * GB, 72 * GB, 0, 0.9),
        (50 * GB, 72 * GB, 30 * GB, 0.525),  # ours hold what is used: the budget without it
        (20 * GB, 72 * GB, 0, 0.237),  # others hold it: what is free, less a context
        (80 * GB, 20 * GB, 5 * GB, 0.187),
        (80 * GB, 20 * GB, 30 * GB, 0.0),
        (GB // 2, 72 * GB, 0, 0.0),
        (80 * GB, 80 * GB, 0, 0.987),
    ],
)
def test_what_is_left(free, budget, held, fraction):
    assert gpu.fraction_left(80 * GB, free, budget, held) == fraction


def test_a_share_is_what_the_other_engines_leave(nvml):
    assert gpu.share([]) == 0.612  # free, less a context
    nvml.compute = [[(100, 30 * GB)], [(101, 10 * GB)]]
    assert gpu.share([100, 101]) == 0.525
    settings.configure(device_memory_budget="50GB")
    assert gpu.share([100, 101]) == 0.25
    settings.configure(device_memory_budget="50%")
    assert gpu.share([100, 101]) == 0.125
    assert gpu.share([]) == 0.5


def test_of_several_devices_the_fullest_counts(nvml, monkeypatch):
    nvml.used = [0, 40 * GB]
    assert gpu.share([]) == 0.9
    assert gpu.share([], count=2) == 0.487
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpu.share([]) == 0.487


def test_where_nothing_is_left_the_engine_says_so_itself(nvml):
    nvml.used = [80 * GB, 0]
    assert gpu.share([]) == 0.001


# --------------------------------------------------------------------- rows and tables


class Everyone:
    """The list of a GPU on which every process that this one has started holds as much."""

    def __init__(self, held: int | None) -> None:
        self.held = held

    def __iter__(self):
        return iter([(p.pid, self.held) for p in psutil.Process().children(recursive=True)])


@pytest.fixture
def on_gpu(nvml, monkeypatch):
    """An engine that holds 3 GB of the first GPU, as the driver tells."""
    monkeypatch.setattr(gpu, "_opened_a_device", lambda pid: True)
    nvml.compute[0] = Everyone(3 * GB)
    return echo().load()


def test_rows_and_tables_count_it_and_the_machines_budget_does_not(on_gpu):
    frame = on_gpu.infer("a b")
    (row,) = nbinfer.engines().to_dict("records")
    for found in (
        frame["model_memory_bytes"][0],
        frame["peak_memory_bytes"][0],
        row["memory_bytes"],
        row["peak_bytes"],
        on_gpu.memory()["memory_bytes"],
    ):
        assert 3 * GB < found < 4 * GB
    (resident,) = pool.residents()
    assert pool._bytes(resident) < GB
    assert 3 * GB < pool.unload(resident) < 4 * GB


@pytest.mark.parametrize(("seen", "most"), [([3, 9, 3], 9), ([3, None, 9], None), ([3, 3, 3], 3)])
def test_a_peak_on_the_device(on_gpu, monkeypatch, seen, most):
    (resident,) = pool.residents()
    held = iter(seen)
    monkeypatch.setattr(gpu, "process_tree_device_bytes", lambda pids: (n := next(held)) and n * GB)
    sampler = measure.PeakSampler(pid_of(on_gpu), resident.seen)
    for _ in seen:
        sampler._look()
    if most is None:
        assert sampler.peak_bytes == 0
    else:
        assert most * GB < sampler.peak_bytes < (most + 1) * GB


def test_a_local_vllm_gets_its_share(on_gpu, tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + b"0000"
    )
    shares = []
    for kwargs in ({}, {"tensor_parallel_size": 2}):
        params = ModelParams(str(tmp_path), model_kwargs=kwargs)
        message, _ = VLLMInferenceEngine(params)._prepare(print)
        shares.append(message["device_share"])
    # 80 GB, of which 72 are the budget, 30 are in use, and 3 are ours.
    assert shares == [0.612, 0.612]
    settings.configure(device_memory_budget="43GB")
    assert VLLMInferenceEngine(str(tmp_path))._prepare(print)[0]["device_share"] == 0.5


def test_an_unknown_part_makes_the_whole_unknown(on_gpu, nvml):
    nvml.compute[0] = Everyone(None)
    on_gpu.unload()
    frame = on_gpu.infer("a b")
    assert frame["model_memory_bytes"].isna().all()
    assert frame["peak_memory_bytes"].isna().all()
    (row,) = nbinfer.engines().to_dict("records")
    assert row["state"] == "ready"
    assert nbinfer.engines()[["memory_bytes", "peak_bytes"]].isna().all(axis=None)
    assert on_gpu.memory() == {"memory_bytes": None, "idle_bytes": None, "peak_bytes": None}


@pytest.mark.gpu
@pytest.mark.skipif(not gpu.devices(), reason="no NVIDIA GPU here")
def test_on_a_real_device(clean):
    assert gpu.devices()
    assert 0 < gpu.share([]) <= 1
    assert gpu.process_tree_device_bytes([1]) in (0, None)
