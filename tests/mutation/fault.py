"""What a planted fault is: a piece of text that stands once in the sources, and what to write instead.

The table is in `faults/*.txt`: for each module a line `[module] tests`, then three lines a fault: what goes
wrong, `- ` and the text as it is, `+ ` and the text instead, with `\\n` for the end of a line. A fourth line,
`= ` and an argument, says why what is wrong there changes nothing that a test could see.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "wdstransport"
TABLES = Path(__file__).parent / "faults"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        name: what goes wrong.
        path: the module, below the package.
        old: text that stands exactly once in it.
        new: what stands there instead.
        tests: paths whose tests must catch it.
        equivalent: why none can, or nothing.
    """

    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]
    equivalent: str = ""

    def plant(self, source: str) -> str:
        """The module's text with the fault in it.

        Raises:
            ValueError: the text to replace does not stand there exactly once, or nothing would change.
        """
        found = source.count(self.old)
        if found != 1 or self.old == self.new:
            raise ValueError(f"{self.path}: {self.name}: the text stands there {found} times, not once")
        return source.replace(self.old, self.new)


def read_table(path: Path) -> list[Fault]:
    """The faults of one file.

    Raises:
        ValueError: a line is none of the six kinds.
    """
    faults: list[Fault] = []
    module, tests, name, old = "", (), "", None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.startswith("["):
            module, _, rest = line[1:].partition("]")
            tests = tuple(rest.split())
        elif line.startswith("- ") and name and old is None:
            old = line[2:].replace("\\n", "\n")
        elif (line.startswith("+ ") or line == "+") and old is not None:
            faults.append(Fault(name, module, old, line[2:].replace("\\n", "\n"), tests))
            name, old = "", None
        elif line.startswith("= ") and faults and not name:
            faults[-1] = replace(faults[-1], equivalent=line[2:])
        elif line and not name and module:
            name = line
        elif line:
            raise ValueError(f"{path.name}, line {number}: {line!r} stands at the wrong place")
    return faults


def read_all() -> list[Fault]:
    """Every fault there is."""
    return [fault for path in sorted(TABLES.glob("*.txt")) for fault in read_table(path)]
