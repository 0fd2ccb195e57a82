"""Tier `bubblewrap`: namespaces, an almost empty read-only root, refused system calls, an unprivileged uid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shoal.rewards.sandbox.interpreter import SYSTEM_LIBRARIES, Interpreter
from shoal.rewards.sandbox.launch import Launch, pipe, sealed_memory
from shoal.rewards.sandbox.limits import MIB, Limits
from shoal.rewards.sandbox.seccomp import seccomp_filter

NOBODY = 65534
BORROWED = Path("/mnt")
DEVICES = ("null", "zero", "full", "random", "urandom")


class Bubblewrap:
    """Own user, PID, IPC, UTS, cgroup, mount and network namespaces; a root folder that is read-only and holds Python
    and the system's libraries and nothing else; an empty private /tmp of limited size; no environment, capability or
    inherited descriptor; rlimits, set inside. `setpriv` is given where this process is root."""

    name = "bubblewrap"
    exposed = False

    def __init__(self, bwrap: str, setpriv: str | None) -> None:
        self.bwrap, self.setpriv = bwrap, setpriv
        self.filter = seccomp_filter()

    def launch(self, interpreter: Interpreter, limits: Limits, order: str) -> Launch:
        """See `Tier`."""
        info, info_write = pipe()
        rules = sealed_memory(self.filter)
        outer, sources = ([], list(interpreter.folders)) if self.setpriv is None else self._drop(interpreter.folders)
        command = [
            self.bwrap,
            *("--info-fd", str(info_write.fileno())),
            *outer,
            *("--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"),
            *("--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox", "--cap-drop", "ALL"),
            *(
                "--seccomp",
                str(rules.fileno()),
            ),
            # Before the folders, some of which may stand in the /tmp of outside.
            *("--size", str(limits.files_mib * MIB), "--tmpfs", "/tmp"),
            *_mounts(interpreter.folders, sources),
            *_closed(interpreter.folders),
            *("--chdir", "/tmp", "--remount-ro", "/"),
            *("--clearenv", "--setenv", "HOME", "/tmp", "--setenv", "LC_ALL", "C.UTF-8"),
            *("--", *interpreter.guest(order)),
        ]
        return Launch(command, [info_write, rules], info)

    def other_processes(self) -> int:
        """None: a user namespace of its own has a count of its own."""
        return 0

    def _drop(self, folders: Sequence[Path]) -> tuple[list[str], list[Path]]:
        """What stands before the command as root, and where that finds the folders.

        RLIMIT_NPROC does not hold for root, also under another uid in a namespace, so bubblewrap itself must be started
        unprivileged. It may then be unable to reach Python (in /root, say): a first one, as root, mounts its folders
        where everyone can, in a mount namespace that ends with it. The system's libraries can be reached as they are.
        """
        assert self.setpriv is not None
        sources = [
            folder if str(folder) in SYSTEM_LIBRARIES else BORROWED / str(number)
            for number, folder in enumerate(folders)
        ]
        # A PID namespace of its own, because its monitor gives up the right to signal the other uid when it is killed.
        command = ["--die-with-parent", "--unshare-pid", "--dev-bind", "/", "/"]
        command += ["--tmpfs", str(BORROWED)]
        for folder, source in zip(folders, sources, strict=True):
            if source != folder:
                command += ["--ro-bind", str(folder), str(source)]
        command += [
            "--",
            self.setpriv,
            "--reuid",
            str(NOBODY),
            "--regid",
            str(NOBODY),
            "--clear-groups",
            "--",
            self.bwrap,
        ]
        return command, sources


def _mounts(folders: Sequence[Path], sources: Sequence[Path]) -> list[str]:
    # The kernel's knobs read-only also where the namespace owns them, and nothing of the first process, which is
    # bubblewrap's own: it runs as the same user, so that its memory and descriptors could be opened.
    words = ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys"]
    words += ["--perms", "0000", "--tmpfs", "/proc/1", "--remount-ro", "/proc/1", "--dir", "/dev"]
    for name in DEVICES:
        words += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    words += ["--symlink", "/proc/self/fd", "/dev/fd", "--symlink", "/tmp", "/dev/shm"]
    for folder, source in zip(folders, sources, strict=True):
        if folder.is_symlink() and str(folder) in SYSTEM_LIBRARIES:  # /lib, which is usr/lib
            words += ["--symlink", str(folder.readlink()), str(folder)]
        else:
            words += ["--ro-bind", str(source), str(folder)]
    return words


def _closed(folders: Sequence[Path]) -> list[str]:
    """The folders on the way to what is mounted cannot be listed: their names tell of the machine."""
    on_the_way = {parent for folder in folders for parent in folder.parents} - {*folders, Path("/tmp")}
    words = []
    for folder in sorted(folder for folder in on_the_way if not _inside(folder, folders)):
        words += ["--chmod", "0111", str(folder)]
    return words


def _inside(folder: Path, folders: Sequence[Path]) -> bool:
    return any(parent in folders for parent in folder.parents)
