"""A tier that was asked for and is missing is an error; what tier `process` holds, and what it does not."""

from __future__ import annotations

import os
import shutil
import struct
import sys
import tempfile
from threading import BoundedSemaphore, Lock

import pytest

from shoal.config.nodes.code import CodeConfig
from shoal.errors import ConfigError, DataError
from shoal.rewards.sandbox import tiers
from shoal.rewards.sandbox.core import Sandbox
from shoal.rewards.sandbox.interpreter import Interpreter
from shoal.rewards.sandbox.limits import Limits
from shoal.rewards.sandbox.outcome import Status, Tests
from shoal.rewards.sandbox.seccomp import ARCHITECTURES, RETURN, seccomp_filter
from shoal.rewards.sandbox.serve import CodeServer
from shoal.rewards.verifiers.code import check_code

SYSTEM_PYTHON = "/usr/bin/python3"  # one that an unprivileged user can reach, where this one is in /root


@pytest.fixture(scope="module")
def process():
    for python in (None, SYSTEM_PYTHON):
        try:
            return Sandbox("process", python=python)
        except ConfigError as error:
            reason = str(error)
    pytest.skip(reason)


def test_a_missing_bubblewrap_is_refused_with_its_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="apt-get install bubblewrap"):
        Sandbox("bubblewrap")


def test_a_bubblewrap_that_does_not_work_is_refused_with_what_it_says(monkeypatch, tmp_path):
    broken = tmp_path / "bwrap"
    broken.write_text(
        "#!/bin/sh\n[ $1 = --help ] && echo --disable-userns && exit\necho 'bwrap: No permissions' >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ConfigError, match=r"bubblewrap does not work here.*No permissions"):
        Sandbox("bubblewrap")


def test_an_old_bubblewrap_is_refused(monkeypatch, tmp_path):
    old = tmp_path / "bwrap"
    old.write_text("#!/bin/sh\necho --unshare-all\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ConfigError, match=r"0\.8 or later"):
        Sandbox("bubblewrap")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root drops to another user")
def test_root_without_a_way_to_drop_is_refused(bubblewrap, monkeypatch, tmp_path):
    (tmp_path / "bwrap").symlink_to(shutil.which("bwrap"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="setpriv"):
        tiers.find_tier("bubblewrap")


def test_an_unknown_tier_is_refused():
    with pytest.raises(ConfigError, match="bubblewrap and process"):
        tiers.find_tier("docker")


def test_a_python_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="does not run"):
        Sandbox("process", python="/no/such/python")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's programs run as somebody else")
def test_a_python_that_only_root_can_reach_is_refused_with_the_remedy(monkeypatch, tmp_path):
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    (private / "python").symlink_to(sys.executable)
    reachable_by_root = Interpreter((str(private / "python"), "-I"), ())
    monkeypatch.setattr("shoal.rewards.sandbox.core.find_interpreter", lambda python: reachable_by_root)
    with pytest.raises(ConfigError, match=r"who cannot reach .*private/python; name a Python that everyone can run"):
        Sandbox("process")


def test_the_filter_is_for_known_machines_only():
    for machine in ARCHITECTURES:
        rules = list(struct.iter_unpack("<HBBI", seccomp_filter(machine)))
        jumps = [at + 1 + max(yes, no) for at, (code, yes, no, _) in enumerate(rules) if code != RETURN]
        assert max(jumps) < len(rules)
        assert rules[-1][0] == RETURN
    with pytest.raises(ConfigError, match="riscv64"):
        seccomp_filter("riscv64")


def test_an_honest_program_passes_in_tier_process(process, limits):
    assert all(r.passed for r in process.run("def f(): return 1", Tests.from_json(["assert f() == 1"]), limits))
    (result,) = process.run("print(input())", Tests.from_json([{"input": "a", "output": "a"}]), limits)
    assert result.passed


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("bytearray(10**9)", Status.ERROR),
        ("open('x', 'wb').write(bytes(10**8))", Status.ERROR),
        ("import time\ntime.sleep(60)", Status.TIMEOUT),
        ("while True: print('x' * 1000)", Status.LIMIT),
        ("import os\nwhile True: os.dup(0)", Status.ERROR),
        ("import os\nif os.fork() == 0:\n    import time\n    time.sleep(60)", Status.WRONG),
        ("import os\nos._exit(0)", Status.WRONG),
        ("import os\nprint('contained' if len(os.environ) < 4 else dict(os.environ))", Status.PASSED),
        ("import os\nprint('contained' if os.getuid() else 'root')", Status.PASSED),
        ("import os\nprint('contained' if len(os.listdir('/proc/self/fd')) == 4 else 'descriptors')", Status.PASSED),
    ],
)
def test_tier_process_holds_what_rlimits_hold(process, program, status, monkeypatch):
    if "getuid" in program and os.geteuid() != 0:
        pytest.skip("whoever is not root stays who they are")
    made, mkdtemp = [], tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **names: made.append(mkdtemp(**names)) or made[-1])
    small = Limits(seconds=3, cpu_seconds=3, memory_mib=200, output_kib=64, files_mib=4)
    (result,) = process.run(program, Tests.from_json([{"input": "", "output": "contained"}]), small)
    assert result.status is status, result
    assert made and not any(map(os.path.exists, made))


@pytest.mark.parametrize(
    "attempt",
    ["open('/etc/passwd')", "os.listdir('/usr/bin')", "os.memfd_create('x')", "os.kill({pid}, 0)"],
)
def test_tier_process_does_not_hold_what_needs_namespaces(process, bubblewrap, limits, attempt):
    """The same attempts that bubblewrap refuses, so that its tests are known to be able to fail."""
    program = f"import os\n{attempt}\nprint('escaped')".replace("{pid}", str(os.getpid()))
    tests = Tests.from_json([{"input": "", "output": "escaped"}])
    if "kill" not in attempt or os.geteuid() != 0:  # as root, tier process drops to a user who may not
        assert process.run(program, tests, limits)[0].passed
    assert not bubblewrap.run(program, tests, limits)[0].passed


def test_tier_process_says_what_it_does_not_hold_and_is_not_taken_for_bubblewrap(process, limits, caplog):
    server = CodeServer.__new__(CodeServer)
    server.sandbox, server.running, server.lock, server.done = process, BoundedSemaphore(1), Lock(), 0
    request = {"program": "print(1)", "tests": [{"input": "", "output": "1"}], "limits": {}}
    with pytest.raises(DataError, match=r"runs tier process.*reward\.code\.tier=process"):
        server.run({**request, "tier": "bubblewrap"})
    assert server.run({**request, "tier": "process"})[0]["status"] == "passed"
    check_code(CodeConfig(tier="process", python=process.interpreter.command[0]))
    for word in ("reading and writing", "network", "signals", "stays after"):
        assert word in caplog.text
