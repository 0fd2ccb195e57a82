"""Running programs that nobody trusts, with their tests.

`Sandbox` runs one program; `serve` and `client` do the same over HTTP. What is inside: `guest` is the code that runs in
the sandbox, all else runs outside. A verdict is made where the program cannot reach: the output of a stdin/stdout test
is compared here, and an assert is evaluated by a second sandboxed process, which asks the program's process only for
the values of calls, as plain data. The program never holds an expected value, the text of a test or a pipe to results.
"""
