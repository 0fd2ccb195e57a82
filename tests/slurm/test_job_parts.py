"""The Python half of the SLURM scripts, without SLURM: environment, ports, Ray's options, probes, the ring."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from shoal.errors import ConfigError
from shoal.network import free_port
from shoal.slurm.address import address_of, of_slurm
from shoal.slurm.commands import QueuedJob
from shoal.slurm.environment import kept
from shoal.slurm.jobs import Found, copy_log, log_file, progress, status_lines
from shoal.slurm.ports import BLOCK, job_ports
from shoal.slurm.probe import disk_troubles, gpu_troubles
from shoal.slurm.ray_node import arguments
from shoal.slurm.records import Event, add_event, read_events, run_of_job
from shoal.slurm.ring import ring
from shoal.slurm.submit import make_stages, options_without_dependency, read_site

SCRIPTS = Path(__file__).parents[2] / "slurm"
NOW = datetime(2026, 1, 31, 12, 0, 0)
NODE = {"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "288", "SHOAL_ADDRESS": "127.0.0.1", "SHOAL_TEMP": "/tmp/shoal-7-n1"}


def test_scripts_pass_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: apt-get install shellcheck")
    files = [str(file) for file in sorted(SCRIPTS.rglob("*")) if file.is_file()]
    done = subprocess.run(["shellcheck", "-x", *files], cwd=SCRIPTS.parent, capture_output=True, text=True, timeout=60)
    assert done.stdout == "" and len(files) >= 8


def test_only_known_variables_are_passed_on() -> None:
    given = {"SLURM_JOB_ID": "7", "SLURM_NODELIST": "n" * 200_000, "HF_HUB_OFFLINE": "1", "HOME": "/h",
             "LD_PRELOAD": "x.so", "MY_TOKEN": "1", "OTHER": "1", "SHOAL_KEEP_ENV": "MY_"}  # fmt: skip
    assert set(kept(given)) == {"SLURM_JOB_ID", "HF_HUB_OFFLINE", "HOME", "MY_TOKEN", "SHOAL_KEEP_ENV"}


def test_a_library_is_preloaded_into_the_driver_and_not_into_ray() -> None:
    environment = {**os.environ, "LD_PRELOAD": "", "SHOAL_LD_PRELOAD": "of_the_driver.so"}
    shown = [
        sys.executable,
        "-m",
        "shoal.slurm.environment",
        sys.executable,
        "-c",
        "import os; print(os.environ['LD_PRELOAD'])",
    ]
    done = subprocess.run(shown, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "of_the_driver.so\n"
    assert "LD_PRELOAD" not in kept(environment)


def test_two_jobs_have_other_ports_and_a_taken_block_is_passed_over() -> None:
    first = job_ports(11, "127.0.0.1")
    assert job_ports(12, "127.0.0.1") >= first + BLOCK
    with socket.create_server(("127.0.0.1", first + 3)):
        assert job_ports(11, "127.0.0.1") not in range(first - BLOCK + 1, first + BLOCK)


def test_ray_is_told_its_address_its_folder_and_at_most_32_cpus() -> None:
    command = arguments("head", {**NODE, "SHOAL_RAY_HEAD": "127.0.0.1:20140", "SHOAL_GPUS": "4"})
    assert {"--head", "--node-ip-address=127.0.0.1", "--temp-dir=/tmp/shoal-7-n1", "--num-cpus=32", "--num-gpus=4",
            "--port=20140", "--include-dashboard=false"} <= set(command)  # fmt: skip
    worker = arguments("worker", {**NODE, "SHOAL_RAY_HEAD": "127.0.0.1:20140", "SHOAL_CPUS": "3"})
    assert "--address=127.0.0.1:20140" in worker and "--num-cpus=3" in worker
    assert not [one for one in worker if one.startswith(("--head", "--port=", "--include-dashboard"))]


def test_a_long_folder_for_ray_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"SHOAL_TEMP=/tmp/a{60}: at most 40 characters"):
        arguments("head", {**NODE, "SHOAL_TEMP": "/tmp/" + "a" * 60, "SHOAL_RAY_HEAD": "127.0.0.1:20140"})


def test_the_address_is_that_of_the_interface() -> None:
    assert address_of("lo") == "127.0.0.1"
    with pytest.raises(
        ConfigError, match=r"SHOAL_INTERFACE=hsn9: no IPv4 address on that network card; there are .*lo"
    ):
        address_of("hsn9")


def test_an_address_of_another_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\necho NodeName=n1 NodeAddr=192.0.2.7 State=IDLE\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ConfigError, match=r"192\.0\.2\.7 is no address of this machine .*: set SHOAL_INTERFACE"):
        of_slurm("n1")


def test_disks_that_are_full_or_cannot_be_written_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(disk_troubles(tmp_path, local=True)) == []
    monkeypatch.setenv("SHOAL_DISK_GB", "1e9")
    assert "less than SHOAL_DISK_GB=1e+09" in next(disk_troubles(tmp_path, local=True))
    assert list(disk_troubles(tmp_path / "none", local=False)) == [f"{tmp_path / 'none'} cannot be written"]


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo GPU 0: H100; echo GPU 1: H100", "4 GPUs are asked for and nvidia-smi sees 2"),
        ("echo NVML: Driver mismatch; exit 9", "nvidia-smi sees 0 (NVML: Driver mismatch)"),
    ],
)
def test_missing_gpus_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, found: str) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert found in next(gpu_troubles(4))
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert list(gpu_troubles(4)) == ["4 GPUs are asked for and there is no nvidia-smi"]


def test_nodes_that_reach_each_other_give_a_speed_and_a_silent_one_is_named() -> None:
    names, addresses = ["n1", "n2", "n3"], ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
    store = f"127.0.0.2:{free_port('127.0.0.2')}"
    with ThreadPoolExecutor(3) as ranks:
        assert all(speed > 0 for speed in ranks.map(lambda rank: ring(rank, names, addresses, store), range(3)))
    store = f"127.0.0.2:{free_port('127.0.0.2')}"
    with ThreadPoolExecutor(2) as ranks:
        found = [ranks.submit(ring, rank, names, addresses, store, 2.0) for rank in range(2)]
        for one in found:
            with pytest.raises(ConfigError, match=r"n3 did not come to 127\.0\.0\.2:\d+ within 2 s"):
                one.result()


def test_a_node_that_cannot_be_reached_is_named() -> None:
    store = f"127.0.0.2:{free_port('127.0.0.2')}"
    addresses = ["127.0.0.2", "127.0.0.3"]
    with ThreadPoolExecutor(2) as ranks:
        # n2 is told another address for n1 than the one that n1 listens on.
        found = [ranks.submit(ring, 0, ["n1", "n2"], addresses, store, 5.0),
                 ranks.submit(ring, 1, ["n1", "n2"], ["127.0.0.9", "127.0.0.3"], store, 5.0)]  # fmt: skip
        with pytest.raises(ConfigError, match=r"n2 cannot reach n1 at 127\.0\.0\.9:\d+"):
            found[1].result()
        with pytest.raises(ConfigError, match="n1"):
            found[0].result()


def test_stages_start_from_the_model_of_the_last_and_mistakes_are_refused(tmp_path: Path) -> None:
    stages = make_stages([["story", "run.steps=2"], ["story", "run.name=b"]], str(tmp_path), NOW)
    assert stages[0].words == ["story", "run.steps=2", f"run.root={tmp_path}", "run.name=story-20260131-120000"]
    assert f"model.name={tmp_path}/story-20260131-120000/model" in stages[1].words
    with pytest.raises(ConfigError, match=r"run\.stepz"):
        make_stages([["story", "run.stepz=2"]], str(tmp_path), NOW)
    with pytest.raises(ConfigError, match="two stages have the run folder"):
        make_stages([["story", "run.name=a"], ["story", "run.name=a"]], str(tmp_path), NOW)


def test_later_stages_wait_for_the_one_before_alone() -> None:
    assert options_without_dependency(["--nodes=2", "--dependency=afterany:3"]) == ["--nodes=2"]


def test_the_site_gives_the_options_of_sbatch(tmp_path: Path) -> None:
    site = tmp_path / "site.sh"
    site.write_text('SHOAL_SBATCH="--account=a5k --time=1:00"\nSHOAL_RUN_ROOT=$SHOAL_HOME/runs\necho noise\n')
    found = read_site(site, tmp_path)
    assert found.options == ("--account=a5k", "--time=1:00") and found.run_root == f"{tmp_path}/runs"
    for name in ("generic", "isambard"):
        assert read_site(SCRIPTS / "site" / f"{name}.sh", tmp_path).run_root == "outputs"
    site.write_text("module load nothing\n")
    with pytest.raises(ConfigError, match=r"site\.sh fails: .*module"):
        read_site(site, tmp_path)
    with pytest.raises(ConfigError, match="no such file"):
        read_site(tmp_path / "none.sh", tmp_path)


def test_a_job_is_found_by_its_number_and_its_attempts_are_told(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for number, (event, text) in enumerate([("submitted", ""), ("started", "story"), ("again", "saved after step 3")]):
        add_event(run, Event(41, 0, number, event, text, "n[1-2]", str(tmp_path / "shoal-41.out")))
    with (tmp_path / "slurm/run/attempts.jsonl").open("a") as lines:
        lines.write('{"job": 41, "att')  # the node went down
    assert [event.event for event in read_events(run)] == ["submitted", "started", "again"]
    assert run_of_job(41, tmp_path) == run and run_of_job(42, tmp_path) is None
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"step": 3}\n{"st')
    lines_said = list(status_lines(Found(41, run, None)))
    assert lines_said[0] == "job 41: not in the queue any more"
    assert re.search(r"run: step 3, \d+ s ago$", lines_said[1])
    assert lines_said[2].endswith("attempt 0  started: on n[1-2]")
    assert lines_said[3].endswith("attempt 0  again: saved after step 3")
    assert progress(tmp_path / "none") == "no step yet"


def test_logs_of_a_job_that_waits_and_of_a_part_that_is_not_there_say_so(tmp_path: Path) -> None:
    waiting = QueuedJob("41", "PENDING", "Resources", "", "0:00", "1:00", "")
    with pytest.raises(ConfigError, match="job 41 has not started yet, so there is no log"):
        log_file(Found(41, tmp_path / "run", waiting), None, None)
    add_event(tmp_path / "run", Event(41, 2, 0, "started", "", "n1", str(tmp_path / "shoal-41.out")))
    folder = tmp_path / "slurm/run/41-2"
    folder.mkdir()
    (folder / "driver.log").write_text("")
    found = Found(41, tmp_path / "run", None)
    assert log_file(found, None, None) == tmp_path / "shoal-41.out"
    assert log_file(found, None, "driver") == folder / "driver.log"
    with pytest.raises(ConfigError, match=r"ray-n9\.log; logs of attempt 2: driver"):
        log_file(found, None, "ray-n9")


def test_a_log_is_followed_until_the_job_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.slurm.jobs.QUEUE_SECONDS", 0.0)
    monkeypatch.setattr("shoal.slurm.jobs.LOOK_SECONDS", 0.0)
    file = tmp_path / "shoal-41.out"
    file.write_text("one\n")
    written: list[str] = []
    looks = iter([True, True, False])

    def goes_on() -> bool:
        with file.open("a") as lines:
            lines.write("more\n")
        return next(looks)

    copy_log(file, written.append, goes_on)
    assert "".join(written) == "one\nmore\nmore\nmore\n"
