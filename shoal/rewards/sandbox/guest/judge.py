"""The judge's process of assert tests: runs the tests' statements, and asks the program's process for values.

The program is nowhere in here. What it returns arrives as plain data, or as a `Remote` that stands for an object of its
own; the comparison with an expected value happens here, with this process's own `==`. So an object that claims to equal
everything equals no expected value; only two objects of the program's own are compared by the program.
"""

import _signal as signal  # `signal` itself makes an enum of every number, which takes longer than a short program
import io
import posix
import select
import sys
import time

from bare_json import dumps
from names import used_names
from remote import Asker, ProgramError, Unsupported
from wire import Broken, import_module


class Late(BaseException):
    """The test's time is over. Not an Exception, so that a test cannot catch it by accident."""


def judge(tests: list[str], read: int, write: int, results: int, seconds: float) -> None:
    """Writes one JSON line a test to `results`, as far as the program's process comes."""
    sys.stdin = io.StringIO()
    sys.stdout = io.StringIO()
    deadline = [time.monotonic() + seconds]

    def read_in_time(length: int) -> bytes:
        left = deadline[0] - time.monotonic()
        if left <= 0 or not select.select([read], [], [], left)[0]:
            raise Late
        return posix.read(read, length)

    def late(number: int, frame: object) -> None:
        raise Late

    def report(status: str, started: float, detail: str = "") -> None:
        line = {"status": status, "seconds": time.monotonic() - started, "detail": detail[:300]}
        posix.write(results, dumps(line) + b"\n")

    signal.signal(signal.SIGALRM, late)
    started = time.monotonic()
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
        # A little later than the deadline of a question, which says more clearly what happened.
        signal.setitimer(signal.ITIMER_REAL, max(deadline[0] - time.monotonic(), 0) + 0.1)
        try:
            namespace = {"__name__": "test", **{name: import_module(name) for name in standard & set(defined)}}
            namespace.update((name, asker.decode(value)) for name, value in defined.items() if name in used)
            exec(code, namespace)
        except Late:
            report("timeout", started, "no answer in time")
            return  # the program is still at it: the next test needs a new one
        except Broken as error:
            report("error", started, f"the program's process: {error}")
            return
        except Unsupported as error:
            report("unsupported", started, str(error))
        except AssertionError as error:
            report("wrong", started, f"assertion failed {error}".strip())
        except BaseException as error:  # noqa: BLE001 - any failure of the test is a failed test
            report("error", started, f"{type(error).__name__}: {error}")
        else:
            report("passed", started)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
