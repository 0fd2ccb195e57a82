"""Programs that mean harm, each with the ways in which it may end; run by run_hostile.py in tier bubblewrap.

A program that ends in `passed` has found its attempt refused and says so by the expected output, `contained`. The words
in braces are filled in by run_hostile.py. The limits are those of `LIMITS` there: 8 processes, 128 MiB, 4 MiB of files.
"""

from __future__ import annotations

PRELUDE = """
import ctypes, os, signal, socket, sys, threading, time, mmap, resource
libc = ctypes.CDLL(None, use_errno=True)
def refused(attempt, *args):
    try:
        value = attempt(*args)
    except (OSError, RuntimeError, MemoryError, ValueError):
        return
    if value == -1 and ctypes.get_errno():
        return
    print("escaped", attempt, args)
    os._exit(0)
def until_refused(attempt, most):
    for number in range(most):
        try:
            attempt(number)
        except (OSError, RuntimeError, MemoryError):
            return number
    print("escaped")
    os._exit(0)
def contained():
    print("contained", flush=True)
def sleeper(seconds=30):
    pid = os.fork()
    if pid == 0:
        time.sleep(seconds)
        os._exit(0)
"""

PASSED = ("passed",)
ENDED = ("error", "limit", "timeout")

HOSTILE: dict[str, tuple[tuple[str, ...], str]] = {
    "counts how many processes it can have": (PASSED, "until_refused(lambda n: sleeper(), 12); contained()"),
    "fork bomb": (ENDED, "while True:\n    try: os.fork()\n    except OSError: pass"),
    "threads without end": (
        PASSED,
        "until_refused(lambda n: threading.Thread(target=time.sleep, args=(30,), daemon=True).start(), 12)\n"
        "contained()",
    ),
    "a gigabyte at once": (PASSED, "refused(bytearray, 10**9); contained()"),
    "memory bit by bit": (ENDED, "kept = []\nwhile True: kept.append(bytearray(2**20))"),
    "memory in many processes": (
        ("limit",),
        "for _ in range(5):\n    if os.fork() == 0: break\nkept = bytearray(b'x') * (60 * 2**20)\ntime.sleep(30)",
    ),
    "memory shared by processes": (
        ("limit",),
        "for _ in range(5):\n    if os.fork() == 0: break\n"
        "kept = mmap.mmap(-1, 60 * 2**20)\nfor at in range(0, len(kept), 4096): kept[at] = 1\ntime.sleep(30)",
    ),
    "memory that no rlimit counts": (
        PASSED,
        "refused(os.memfd_create, 'x')\nrefused(libc.shmget, 0, 10**8, 0o1600)\nrefused(libc.msgget, 0, 0o1600)\n"
        "refused(libc.semget, 0, 10, 0o1600)\ncontained()",
    ),
    "decompression bomb": (ENDED, "import zlib\nz = zlib.compress(bytes(10**8))\nkept = [zlib.decompress(z)] * 2"),
    "fills the disk": (
        PASSED,
        "def write(n): open(f'/tmp/{n}', 'wb').write(bytes(2**20))\nassert until_refused(write, 50) <= 4\ncontained()",
    ),
    "one endless file": (
        PASSED,
        "file = open('/tmp/x', 'wb', 0)\nassert until_refused(lambda n: file.write(bytes(2**20)), 50) <= 4\n"
        "contained()",
    ),
    "writes to /dev/shm": (
        PASSED,
        "file = open('/dev/shm/x', 'wb', 0)\nuntil_refused(lambda n: file.write(bytes(2**20)), 50)\ncontained()",
    ),
    "files without end": (ENDED, "n = 0\nwhile True:\n    os.close(os.open(f'/tmp/{n}', os.O_CREAT)); n += 1"),
    "folders in folders": (ENDED, "while True:\n    os.mkdir('d'); os.chdir('d')"),
    "descriptors without end": (PASSED, "assert until_refused(lambda n: os.dup(0), 1000) < 64\ncontained()"),
    "pipes full of bytes": (
        PASSED,
        "kept = []\ndef fill(n):\n    r, w = os.pipe(); os.set_blocking(w, False)\n"
        "    os.write(w, bytes(65536)); kept.append(w)\n"
        "assert until_refused(fill, 1000) < 32\ncontained()",
    ),
    "connects to a server on loopback": (
        PASSED,
        "refused(socket.create_connection, ('127.0.0.1', {port}), 1)\ncontained()",
    ),
    "connects to the internet": (
        PASSED,
        "refused(socket.create_connection, ('1.1.1.1', 53), 1)\nrefused(socket.getaddrinfo, 'example.org', 80)\n"
        "refused(socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto, b'x', ('8.8.8.8', 53))\ncontained()",
    ),
    "connects to an abstract socket": (
        PASSED,
        "refused(socket.socket(socket.AF_UNIX).connect, '\\0{abstract}')\ncontained()",
    ),
    "other socket families": (
        PASSED,
        "for family in (16, 17, 29, 31, 38, 40, 44):\n    refused(socket.socket, family, socket.SOCK_DGRAM)\n"
        "refused(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1)\ncontained()",
    ),
    "reads outside": (
        PASSED,
        "for path in ('/etc/passwd', '/etc/shadow', '{secret}', '{repository}/pyproject.toml', '/usr/bin/env',\n"
        "             '/sys/kernel', '/dev/kmsg', '/dev/mem', '/run', '/home', '/var', '/boot', '/proc/kcore'):\n"
        "    refused(open, path); refused(os.listdir, path)\ncontained()",
    ),
    "writes outside": (
        PASSED,
        "for path in ('/x', '/usr/lib/x', '/dev/x', '/proc/x', '{guest}/start.py', '{guest}/x', os.__file__,\n"
        "             sys.executable, '/lib/x'):\n    refused(open, path, 'wb')\nrefused(os.chmod, '/', 0o777)\n"
        "refused(os.unlink, os.__file__)\nrefused(os.rename, '/tmp', '/x')\ncontained()",
    ),
    "follows links out": (
        PASSED,
        "for n, path in enumerate(('/etc/passwd', '{secret}', '/proc/1/root{secret}', '../../..{secret}')):\n"
        "    os.symlink(path, f'/tmp/{n}'); refused(open, f'/tmp/{n}')\n"
        "refused(open, '/proc/self/root{secret}'); refused(open, '/proc/self/cwd/../..{secret}')\n"
        "refused(os.chroot, '/tmp')\ncontained()",
    ),
    "looks into the first process": (
        PASSED,
        "for path in ('/proc/1/root{secret}', '/proc/1/cwd{secret}', '/proc/1/root' '/etc/passwd'):\n"
        "    refused(open, path)\n"
        "for name in ('mem', 'environ', 'cmdline', 'maps', 'fd', 'stat', 'status', 'task', 'ns', 'oom_score_adj'):\n"
        "    refused(open, f'/proc/1/{name}'); refused(os.listdir, f'/proc/1/{name}')\n"
        "    refused(os.readlink, f'/proc/1/{name}')\n"
        "    refused(lambda: open(f'/proc/1/{name}', 'r+b', 0).write(b'x'))\n"
        "    refused(lambda: open(f'/proc/1/task/1/{name}', 'r+b', 0).write(b'x'))\n"
        "refused(os.listdir, '/proc/1'); refused(os.listdir, '/proc/1/task/1'); refused(open, '/proc/1/x', 'w')\n"
        "refused(os.chmod, '/proc/1', 0o777)\ncontained()",
    ),
    "lists what is on the way to Python": (
        PASSED,
        "folder = sys.prefix\nwhile folder != '/':\n    folder = os.path.dirname(folder)\n"
        "    if folder != '/usr': refused(os.listdir, folder); refused(os.chmod, folder, 0o777)\n"
        "refused(os.listdir, '/')\n"
        "for home in ('/root', '/home'): refused(os.listdir, home); refused(open, home + '/x', 'w')\ncontained()",
    ),
    "finds a writable knob of the kernel": (
        PASSED,
        "writable = 0\nfor folder, _, names in os.walk('/proc/sys'):\n    for name in names:\n"
        "        path = f'{folder}/{name}'\n"
        "        try: descriptor = os.open(path, os.O_WRONLY)\n        except OSError: continue\n"
        "        print('escaped', path); os._exit(0)\n"
        "assert os.statvfs('/proc/sys').f_flag & os.ST_RDONLY\ncontained()",
    ),
    "reads secrets from environments": (
        PASSED,
        "found = str(dict(os.environ))\nfor pid in filter(str.isdigit, os.listdir('/proc')):\n"
        "    for name in ('environ', 'cmdline'):\n"
        "        try: found += open(f'/proc/{pid}/{name}', errors='replace').read()\n        except OSError: pass\n"
        "assert '{password}' not in found\ncontained()",
    ),
    "sets the kernel's knobs": (
        PASSED,
        "for path in ('/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger', '/proc/sys/vm/drop_caches'):\n"
        "    refused(lambda: open(path, 'w').write('1'))\ncontained()",
    ),
    "mounts": (
        PASSED,
        "refused(libc.mount, b'none', b'/tmp', b'tmpfs', 0, 0)\nrefused(libc.umount2, b'/proc', 2)\n"
        "refused(libc.mount, 0, b'/', 0, 32 | 4096, 0)\nrefused(libc.syscall, 430, b'tmpfs', 0)\n"
        "refused(libc.syscall, 428, -100, b'/', 1)\nrefused(libc.syscall, 442, -100, b'/', 0, 0, 0)\ncontained()",
    ),
    "makes a user namespace": (
        PASSED,
        "for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000):\n    refused(libc.unshare, flag)\n"
        "refused(libc.syscall, 435, 0, 0)\n"
        "if os.uname().machine == 'x86_64': refused(libc.syscall, 56, 0x10000000 | 17, 0, 0, 0, 0)\ncontained()",
    ),
    "becomes another user": (
        PASSED,
        "refused(os.setuid, 0); refused(os.setgid, 0); refused(os.setgroups, [0]); refused(os.setresuid, 1, 1, 1)\n"
        "refused(os.mknod, '/tmp/disk', 0o60666, os.makedev(8, 0)); refused(socket.sethostname, 'x')\n"
        "refused(os.setpriority, os.PRIO_PROCESS, 0, -10)\nassert os.getuid() != 0\ncontained()",
    ),
    "raises its limits": (
        PASSED,
        "for name in ('AS', 'NPROC', 'CPU', 'FSIZE', 'NOFILE', 'CORE'):\n"
        "    refused(resource.setrlimit, getattr(resource, 'RLIMIT_' + name), (-1, -1))\ncontained()",
    ),
    "traces other processes": (
        PASSED,
        "refused(libc.ptrace, 16, 1, 0, 0)\nrefused(libc.ptrace, 0, 0, 0, 0)\n"
        "refused(libc.syscall, 310, 1, 0, 0, 0, 0, 0)\n"
        "refused(libc.syscall, 438, 3, 0, 0)\ncontained()",
    ),
    "keys, bpf and io_uring": (
        PASSED,
        "refused(libc.syscall, 425, 8, ctypes.create_string_buffer(200))\nrefused(libc.personality, 0x40000)\n"
        "if os.uname().machine == 'x86_64':\n    for number in (248, 249, 250, 298, 304, 321, 323):\n"
        "        refused(libc.syscall, number, 0, 0, 0, 0, 0)\ncontained()",
    ),
    "kills its parent": (PASSED, "for n in range(1, 32): os.kill(os.getppid(), n)\ncontained()"),
    "kills everyone": (
        PASSED,
        "for pid in (-1, 1, 2, *range(3, 50)):\n    if pid != os.getpid():\n"
        "        try: os.kill(pid, 9)\n        except OSError: pass\ncontained()",
    ),
    "kills processes of the machine": (
        PASSED,
        "refused(os.kill, {pid}, 9)\nrefused(os.killpg, {pid}, 9)\nrefused(os.pidfd_open, {pid})\ncontained()",
    ),
    "kills its own group": (("error",), "os.killpg(0, 9)"),
    "endless output": (("limit",), "while True: print('x' * 1000)"),
    "output without a newline": (("limit",), "sys.stdout.write('x' * 10**7)"),
    "endless complaints": (("limit",), "while True: sys.stderr.write('x' * 1000)"),
    "output of many processes": (("limit",), "os.fork(); os.fork()\nwhile True: os.write(1, b'x' * 1000)"),
    "zombies": (
        PASSED,
        "def spawn(n):\n    if os.fork() == 0: os._exit(0)\nuntil_refused(spawn, 1000)\ncontained()",
    ),
    "a daemon that outlives it": (
        PASSED,
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        for fd in range(3): os.close(fd)\n"
        "        time.sleep(60)\n    os._exit(0)\ncontained()",
    ),
    "a child that keeps its output open": (PASSED, "sleeper(60)\ncontained()"),
    "sleeps": (("timeout",), "time.sleep(60)"),
    "waits for a lock for ever": (("timeout",), "lock = threading.Lock(); lock.acquire(); lock.acquire()"),
    "computes for ever": (ENDED, "while True: pass"),
    "computes for ever in C": (ENDED, "9**9**9"),
    "computes for ever in many processes": (ENDED, "os.fork(); os.fork()\nwhile True: pass"),
    "ignores all signals": (
        ENDED,
        "for n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\nwhile True: pass",
    ),
    "closes its output and sleeps": (("timeout",), "os.close(1); os.close(2); time.sleep(60)"),
    "never leaves its exit hook": (("timeout",), "import atexit\natexit.register(time.sleep, 60)"),
    "a thread that does not end": (("timeout",), "threading.Thread(target=time.sleep, args=(60,)).start()"),
    "recursion without end": (ENDED, "sys.setrecursionlimit(10**9)\ndef f(): f()\nf()"),
    "crashes the interpreter": (("error",), "ctypes.string_at(0)"),
    "aborts": (("error",), "os.abort()"),
    "a very deep expression": (ENDED, "eval('(' * 10**6)"),
    "a regular expression without end": (ENDED, "import re\nre.match('(a+)+$', 'a' * 60 + 'b')"),
    "exits early": (("wrong",), "sys.exit(0)"),
    "exits at once": (("wrong",), "os._exit(0)"),
    "inherits descriptors": (
        PASSED,
        "assert len(os.listdir('/proc/self/fd')) == 4, os.listdir('/proc/self/fd')\ncontained()",
    ),
    "changes its input": (
        PASSED,
        "def change():\n    with open('/proc/self/fd/0', 'r+b', 0) as file: file.write(b'x')\nrefused(change)\n"
        "refused(os.ftruncate, 0, 10**6)\ncontained()",
    ),
    "starts a shell": (
        PASSED,
        "assert os.system('true') != 0\nfor path in ('/bin/sh', '/usr/bin/env', '/usr/bin/python3', '/bin/busybox'):\n"
        "    refused(os.execv, path, [path])\ncontained()",
    ),
    "takes its modules anew": (
        PASSED,
        "import importlib\nfor name in ('os', 'posix', 'socket'): sys.modules.pop(name, None)\n"
        "again = importlib.import_module('os')\nassert again.system('true') != 0\n"
        "refused(importlib.import_module('socket').create_connection, ('127.0.0.1', {port}), 1)\ncontained()",
    ),
    "types into the terminal": (
        PASSED,
        "import fcntl, termios\nrefused(open, '/dev/tty')\n"
        "for fd in range(3): refused(fcntl.ioctl, fd, termios.TIOCSTI, b'x')\ncontained()",
    ),
    "sends descriptors round": (
        PASSED,
        "a, b = socket.socketpair()\ndef send(n): socket.send_fds(a, [b'x'], [0] * 60)\n"
        "a.setblocking(False)\nuntil_refused(send, 10000)\ncontained()",
    ),
}
