"""The imports that LeetCode, LiveCodeBench and HumanEval make before a program, which programs therefore leave out."""

from __future__ import annotations

import re

MODULES = (
    *("bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "io", "itertools"),
    *("json", "math", "operator", "os", "random", "re", "statistics", "string", "sys", "time", "typing"),
)
NAMES = {
    "bisect": "bisect bisect_left bisect_right insort",
    "collections": "Counter OrderedDict defaultdict deque namedtuple",
    "copy": "deepcopy",
    "dataclasses": "dataclass field",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "functools": "cache cmp_to_key lru_cache partial reduce",
    "heapq": "heapify heappop heappush heappushpop heapreplace nlargest nsmallest",
    "itertools": "accumulate chain combinations combinations_with_replacement count cycle groupby islice pairwise "
    "permutations product repeat takewhile zip_longest",
    "math": "ceil comb factorial floor gcd inf isclose isqrt lcm log log2 pi sqrt",
    "operator": "itemgetter",
    "string": "ascii_letters ascii_lowercase ascii_uppercase digits",
    "typing": "Any Callable DefaultDict Deque Dict FrozenSet Generator Iterable Iterator List Optional Sequence Set "
    "Tuple Type TypeVar Union",
}
FUTURE = re.compile(r"^from __future__ import .*$", re.MULTILINE)


def with_usual_imports(program: str) -> str:
    """The program after those of the imports whose names stand in it."""
    words = set(re.findall(r"[A-Za-z_]\w*", program))
    lines = FUTURE.findall(program)  # which must come first
    lines += [f"import {module}" for module in MODULES if module in words]
    for module, names in NAMES.items():
        if used := [name for name in names.split() if name in words]:
            lines.append(f"from {module} import {', '.join(used)}")
    return "\n".join([*lines, FUTURE.sub("", program)]) if lines else program
