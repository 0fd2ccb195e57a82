"""The first code inside the sandbox: takes the limits on itself, then becomes the program or its judge.

One argument, a dict as Python writes it: `limits` (names of RLIMIT_* and values), `mode`, `go` (descriptor to wait
on), `source` (of the program or the tests), `read`, `write`, `results` (of pipes, where the mode has them), `seconds`
(of one test), and `exposed` (no PID namespace keeps other processes of this user away).

Every program waits for what is imported here and is not compiled beforehand, which is why there is this module and one
line that imports it, and why it uses `posix` where `os` would be usual.
"""

import builtins
import posix
import resource
import sys
from _signal import SIGKILL

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4


def main(here: str) -> None:
    """`here` is the folder of this file, which the program is not to find in its path."""
    order = eval(sys.argv[1])  # written by the process that starts us
    del sys.argv[1:]
    for name, value in order["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    if order["exposed"]:
        prctl(PR_SET_PDEATHSIG, SIGKILL)  # a tier with namespaces sees to it itself
    if not parent_is_there(order["go"]):
        return
    with open(order["source"], encoding="utf-8", errors="surrogateescape") as file:
        source = file.read()
    close_all({0, 1, 2, *(order[name] for name in ("read", "write", "results") if name in order)})
    if order["mode"] == "script":
        sys.path.remove(here)
        run_script(source)
    elif order["mode"] == "serve":
        from serve import serve  # noqa: PLC0415 - each mode imports only its own

        sys.path.remove(here)
        serve(source, order["read"], order["write"])
    else:
        from bare_json import loads  # noqa: PLC0415 - as above
        from judge import judge  # noqa: PLC0415 - as above

        if order["exposed"]:
            prctl(PR_SET_DUMPABLE, 0)  # keeps other processes of this user from writing to this one's descriptors
        judge(loads(source.encode()), order["read"], order["write"], order["results"], order["seconds"])
        posix._exit(0)  # taking the interpreter apart would take longer than the tests


def close_all(kept: set[int]) -> None:
    """Closes what is inherited but for `kept`, whatever its number."""
    for descriptor in {*map(int, posix.listdir("/proc/self/fd"))} - kept:
        try:
            posix.close(descriptor)
        except OSError:
            continue  # the one through which the folder was read


def parent_is_there(go: int) -> bool:
    """Waits for the word to go. From here on the kernel ends this process with its parent; one that ended before, while
    all this was set up, is told by the closed pipe."""
    if not posix.read(go, 1):
        return False
    posix.set_blocking(go, False)
    try:
        return bool(posix.read(go, 1))
    except BlockingIOError:
        return True


def prctl(option: int, value: int) -> None:
    """See prctl(2)."""
    from ctypes import CDLL  # noqa: PLC0415 - slow to load, and not needed where there are namespaces

    CDLL(None).prctl(option, value, 0, 0, 0)


def run_script(source: str) -> None:
    """As `python program.py` does."""
    program = type(sys)("__main__")
    sys.modules["__main__"] = program
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # as without -S
    sys.argv[0] = program.__file__ = "program.py"
    exec(compile(source, "program.py", "exec", dont_inherit=True), vars(program))
