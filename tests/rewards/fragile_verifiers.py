"""Verifiers as users write them, some of which misbehave. Each misbehaves only where the text asks for it."""

import os
import re
import sys
import time

from shoal.rewards.base import Submission


def length(submission: Submission) -> float:
    return float(len(submission.text))


def misbehaving(submission: Submission) -> float:
    text = submission.text
    if text == "hang":
        time.sleep(600)
    if text == "hang in C":
        re.match(r"(a+)+$", "a" * 40 + "b")  # holds the interpreter for years: no signal handler and no thread runs
    if text == "crash":
        os._exit(3)
    if text == "raise":
        raise RuntimeError("no such luck")
    if text == "exit":
        sys.exit("enough")
    if text == "nan":
        return float("nan")
    if text == "words":
        return "very good"  # type: ignore[return-value]
    if text == "hog":
        return float(len(bytearray(2**30)))
    if text == "print":
        sys.stdout.write("a verifier may print\n")
        sys.stdout.flush()
    if text == "read":
        return float(len(sys.stdin.read()))
    return 1.0


def process_id(submission: Submission) -> float:
    return float(os.getpid())


def start_a_child_and_hang(submission: Submission) -> float:
    child = os.fork()
    if child == 0:
        time.sleep(600)
    with open(submission.info["file"], "w") as file:
        file.write(str(child))
    time.sleep(600)
    return 1.0
