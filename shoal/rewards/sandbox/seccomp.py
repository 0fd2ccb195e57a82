"""System calls that no program of a task needs, refused by the kernel: a classic BPF filter, assembled by hand.

Why each is refused: a new user namespace, mounts and handles widen what can be attacked; memfd_create and System V or
POSIX IPC objects hold memory that no rlimit counts; ptrace and its kin read other processes; AF_VSOCK and other socket
families are not bounded by a network namespace.
"""

from __future__ import annotations

import errno
import platform
import struct

from shoal.errors import ConfigError

# name: number on x86_64, on aarch64 (asm/unistd_64.h, asm-generic/unistd.h)
REFUSED = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_setup": (206, 0),
    "fanotify_init": (300, 262),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "personality": (135, 92),
}
CLONE = (56, 220)
CLONE3 = (435, 435)
SOCKET = (41, 198)
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*
FIRST_X32 = 0x40000000  # numbers of the x32 interface, which would go round the list
NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET
FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6

LOAD, EQUAL, ABOVE, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
ALLOW, KILL, FAIL = 0x7FFF0000, 0x80000000, 0x00050000


def seccomp_filter(machine: str | None = None) -> bytes:
    """The filter as an array of struct sock_filter, for this machine or a named one.

    Raises:
        ConfigError: the numbers of its system calls are not known here.
    """
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        raise ConfigError(
            f"tier bubblewrap knows the system calls of {', '.join(ARCHITECTURES)}, not of {machine}; "
            "run `shoal serve code` on such a machine and set reward.code.url"
        )
    column, architecture = ARCHITECTURES[machine]
    # Instructions: (code, jump if true, jump if false, operand); jumps count the instructions that are skipped.
    program = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
        (ABOVE, 0, 1, FIRST_X32),
        (RETURN, 0, 0, FAIL | errno.ENOSYS),
    ]
    for numbers in REFUSED.values():
        program += [(EQUAL, 0, 1, numbers[column]), (RETURN, 0, 0, FAIL | errno.EPERM)]
    # glibc goes back to clone, whose flags can be read, where clone3 is not there.
    program += [(EQUAL, 0, 1, CLONE3[column]), (RETURN, 0, 0, FAIL | errno.ENOSYS)]
    program += [
        (EQUAL, 0, 4, CLONE[column]),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (ANY_BIT, 0, 1, NEW_NAMESPACES),
        (RETURN, 0, 0, FAIL | errno.EPERM),
        (RETURN, 0, 0, ALLOW),
    ]
    program += [(EQUAL, 1, 0, SOCKET[column]), (RETURN, 0, 0, ALLOW), (LOAD, 0, 0, FIRST_ARGUMENT)]
    for family in FAMILIES:
        program += [(EQUAL, 0, 1, family), (RETURN, 0, 0, ALLOW)]
    program.append((RETURN, 0, 0, FAIL | errno.EAFNOSUPPORT))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
