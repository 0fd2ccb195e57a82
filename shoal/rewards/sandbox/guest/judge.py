"""The judge's process of assert tests: runs the tests' statements, and asks the program's process for values.

The program is nowhere in here. What it returns arrives as plain data, or as a `Handle` that stands for an object of its
own; the comparison with an expected value happens here, with this process's own `==`, and never with an operator of the
program's. A test that catches what it should not, such as the end of its time or of the program, has failed all the
same.
"""

import _signal as signal  # `signal` itself makes an enum of every number, which takes longer than a short program
import io
import posix
import select
import sys
import time

from bare_json import dumps
from names import OUTSIDE_MODULES, OWN_MODULES, used_names
from remote import Asker, ProgramError, Unsupported
from wire import Broken, import_module

LATE_AGAIN = 0.2  # seconds; a test that catches the end of its time meets it again
LONGEST_NUMBER = 100_000  # digits: those of a number are read in quadratic time


class Late(BaseException):
    """The test's time is over. Not an Exception, so that a test cannot catch it by accident."""


def judge(tests: list[str], read: int, write: int, results: int, seconds: float) -> None:
    """Writes one JSON line a test to `results`, as far as the program's process comes, after one that it begins."""
    sys.stdin = io.StringIO()
    sys.stdout = io.StringIO()
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(LONGEST_NUMBER)
    deadline = [time.monotonic() + seconds]
    was_late = []

    def late(number: int = 0, frame: object = None) -> None:
        was_late.append(True)
        raise Late

    def read_in_time(length: int) -> bytes:
        left = deadline[0] - time.monotonic()
        if left <= 0 or not select.select([read], [], [], left)[0]:
            late()
        return posix.read(read, length)

    def report(status: str, started: float, detail: str = "") -> None:
        line = {"status": status, "seconds": time.monotonic() - started, "detail": detail[:300]}
        posix.write(results, dumps(line) + b"\n")

    signal.signal(signal.SIGALRM, late)
    started = time.monotonic()
    report("begun", started)
    asker = Asker(read_in_time, write)
    try:
        defined = asker.loaded()
    except Late:
        report("load", started, "timeout: the program does not end")
        return
    except (Broken, ProgramError, MemoryError, RecursionError) as error:
        report("load", started, f"error: {error}")
        return
    used, standard = used_names(tests)
    for number, test in enumerate(tests):
        if number:
            started = time.monotonic()
            deadline[0] = started + seconds
        try:
            code = compile(test, "test.py", "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            report("unsupported", started, f"the test is not Python: {error}")
            continue
        asker.spoiled = ""
        try:
            # A little later than the deadline of a question, which says more clearly what happened.
            signal.setitimer(signal.ITIMER_REAL, max(deadline[0] - time.monotonic(), 0) + 0.1, LATE_AGAIN)
            try:
                exec(code, names_of(asker, defined, used, standard))
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Late:
            status, detail = "timeout", "no answer in time"
        except Unsupported as error:
            status, detail = "unsupported", str(error)
        except AssertionError as error:
            status, detail = "wrong", f"assertion failed {text_of(error)}".strip()
        except BaseException as error:  # noqa: BLE001 - any failure of the test is a failed test
            status, detail = "error", f"{type(error).__name__}: {text_of(error)}"
            if isinstance(error, ImportError) and error is not asker.last_raised:
                status = "unsupported"  # what the test itself imports is not there
        else:
            status, detail = "passed", ""
        if was_late:
            report("timeout", started, "no answer in time")
            return  # the program is still at it: the next test needs a new one
        if asker.spoiled:
            status, detail = "error", asker.spoiled
        report(status, started, detail)
        if asker.broken:
            return


def names_of(
    asker: Asker, defined: dict[str, tuple[object, object]], used: set[str], standard: set[str]
) -> dict[str, object]:
    """What a test finds: the program's definitions that it uses, and this process's own of what is the library's."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for name, (value, origin) in defined.items():
        if name.startswith("__"):
            continue
        if name in standard and (name not in OUTSIDE_MODULES or origin == OUTSIDE_MODULES[name]):
            namespace[name] = import_module(OUTSIDE_MODULES.get(name, name))
        elif name in used and isinstance(origin, str) and origin in OWN_MODULES:
            namespace[name] = getattr(import_module(origin), name, None)
        elif name in used:
            namespace[name] = asker.defined(value)
    return namespace


def text_of(error: BaseException) -> str:
    """Its text, as far as it has one."""
    try:
        return str(error)
    except Exception as worse:  # noqa: BLE001 - the test has failed whatever this is
        return type(worse).__name__
