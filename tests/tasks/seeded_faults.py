"""Forty faults of eight kinds in five small packages with their tests: what repairs are tried on.

Each is a line of a working module written wrongly, so that its right repair is known. The tests of every package pass
without the fault and fail with it; `test_llm_fix.py` sees to both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

COMMAND = ["python", "-m", "unittest", "-q"]


@dataclass(frozen=True)
class Fault:
    """One line (or a few) of a module, as it was and as it is now."""

    package: str
    kind: str
    right: str
    wrong: str

    @property
    def module(self) -> str:
        return f"{self.package}/core.py"

    @property
    def files(self) -> dict[str, bytes]:
        """The package with the fault in it."""
        module, tests = PACKAGES[self.package]
        assert module.count(self.right) == 1, self
        faulty = module.replace(self.right, self.wrong)
        assert faulty.count(self.wrong) == 1 or not self.wrong, self
        return {
            f"{self.package}/__init__.py": b"",
            self.module: faulty.encode(),
            f"test_{self.package}.py": tests.encode(),
        }

    def __str__(self) -> str:
        return f"{self.package}-{self.kind}"


STATS = (
    '''\
"""Numbers in sum."""

import math
from collections import Counter


def mean(values):
    if not values:
        raise ValueError("no values")
    return math.fsum(values) / len(values)


def median(values):
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return mean(ordered[middle - 1 : middle + 1])


def mode(values):
    return Counter(values).most_common(1)[0][0]


def clamp(value, low, high):
    return max(low, min(value, high))


def spread(values):
    highest = max(values)
    return highest - min(values)
''',
    """\
import unittest

from stats.core import clamp, mean, median, mode, spread


class Stats(unittest.TestCase):
    def test_all(self):
        self.assertEqual(mean([1, 2, 3]), 2)
        self.assertEqual(median([3, 1, 2]), 2)
        self.assertEqual(median([4, 1, 2, 3]), 2.5)
        self.assertEqual(mode([1, 2, 2]), 2)
        self.assertEqual([clamp(5, 0, 3), clamp(-1, 0, 3), clamp(2, 0, 3)], [3, 0, 2])
        self.assertEqual(spread([2, 7, 5]), 5)
        self.assertRaises(ValueError, mean, [])
""",
)

WORDS = (
    '''\
"""Words in texts."""

import re
from collections import Counter


def words(text):
    return re.findall(r"[a-z]+", text.lower())


def counted(text):
    found = Counter()
    for word in words(text):
        found[word] += 1
    return found


def longest(text):
    return max(words(text), key=len)


def shortened(text, length=10):
    if len(text) <= length:
        return text
    return text[: length - 1] + "…"


def title(text):
    parts = [word.capitalize() for word in words(text)]
    if not parts:
        raise ValueError("no words")
    return " ".join(parts)
''',
    """\
import unittest

from words.core import counted, longest, shortened, title


class Words(unittest.TestCase):
    def test_all(self):
        self.assertEqual(counted("A b, a.")["a"], 2)
        self.assertEqual(longest("one three two"), "three")
        self.assertEqual([shortened("0123456789"), shortened("0123456789x")], ["0123456789", "012345678…"])
        self.assertEqual(title("two words"), "Two Words")
        self.assertRaises(ValueError, title, "")
""",
)

BANK = (
    '''\
"""Accounts."""

import decimal


class Account:
    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = decimal.Decimal(balance)
        self.history = []

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("nothing to deposit")
        self.balance += amount
        self.history.append(amount)

    def withdraw(self, amount):
        if amount > self.balance:
            raise ValueError("too little")
        self.balance -= amount
        self.history.append(-amount)


def transfer(source, target, amount):
    source.withdraw(amount)
    target.deposit(amount)
    return source.balance
''',
    """\
import unittest

from bank.core import Account, transfer


class Bank(unittest.TestCase):
    def test_all(self):
        one, other = Account("a", 10), Account("b")
        self.assertEqual(transfer(one, other, 4), 6)
        self.assertEqual((one.balance, other.balance, other.history), (6, 4, [4]))
        self.assertEqual(one.history, [-4])
        one.withdraw(6)
        self.assertEqual(one.balance, 0)
        self.assertRaises(ValueError, one.withdraw, 1)
        self.assertRaises(ValueError, one.deposit, 0)
""",
)

GRID = (
    '''\
"""Grids of numbers, row by row."""

import itertools


def size(grid):
    return len(grid), len(grid[0]) if grid else 0


def transposed(grid):
    return [list(column) for column in zip(*grid)]


def flat(grid):
    return list(itertools.chain.from_iterable(grid))


def neighbours(row, column, grid):
    rows, columns = size(grid)
    found = []
    for other in range(max(0, row - 1), min(rows, row + 2)):
        if other != row:
            found.append(grid[other][column])
    return found


def scaled(grid, factor=1):
    if factor == 0:
        raise ValueError("nothing is left")
    return [[factor * value for value in row] for row in grid]
''',
    """\
import unittest

from grid.core import flat, neighbours, scaled, size, transposed


class Grid(unittest.TestCase):
    def test_all(self):
        grid = [[1, 2, 3], [4, 5, 6]]
        self.assertEqual(size(grid), (2, 3))
        self.assertEqual(transposed(grid), [[1, 4], [2, 5], [3, 6]])
        self.assertEqual(flat(grid), [1, 2, 3, 4, 5, 6])
        self.assertEqual([neighbours(0, 1, grid), neighbours(1, 2, grid)], [[5], [3]])
        self.assertEqual([scaled(grid), scaled([[1]], 2)], [grid, [[2]]])
        self.assertRaises(ValueError, scaled, grid, 0)
""",
)

SPANS = (
    '''\
"""Spans of whole numbers: from the first one up to the last one, which is part of it."""

import functools


class Span:
    def __init__(self, first, last):
        if first > last:
            raise ValueError("it ends before it begins")
        self.first = first
        self.last = last

    def length(self):
        return self.last - self.first + 1

    def overlaps(self, other):
        return self.first <= other.last and other.first <= self.last

    def joined(self, other):
        return Span(min(self.first, other.first), max(self.last, other.last))


def merged(spans, gap=0):
    result = []
    for span in sorted(spans, key=lambda each: each.first):
        if result and span.first <= result[-1].last + gap:
            result[-1] = result[-1].joined(span)
        else:
            result.append(span)
    return result


def covering(spans):
    return functools.reduce(Span.joined, spans)
''',
    """\
import unittest

from spans.core import Span, covering, merged


class Spans(unittest.TestCase):
    def test_all(self):
        spans = [Span(8, 9), Span(1, 3), Span(3, 5)]
        self.assertEqual([each.length() for each in spans], [2, 3, 3])
        self.assertEqual([(each.first, each.last) for each in merged(spans)], [(1, 5), (8, 9)])
        self.assertEqual([(each.first, each.last) for each in merged([Span(1, 2), Span(3, 4)])], [(1, 2), (3, 4)])
        self.assertEqual((covering(spans).first, covering(spans).last), (1, 9))
        self.assertTrue(spans[1].overlaps(spans[2]) and spans[2].overlaps(spans[1]))
        self.assertFalse(spans[0].overlaps(spans[1]) or spans[1].overlaps(spans[0]))
        self.assertRaises(ValueError, Span, 2, 1)
""",
)

PACKAGES: Mapping[str, tuple[str, str]] = {
    "stats": STATS,
    "words": WORDS,
    "bank": BANK,
    "grid": GRID,
    "spans": SPANS,
}

BY_RULE = ("misspelt name", "misspelt attribute", "forgotten import", "forgotten colon")
"""The kinds that the offline provider repairs."""

# Kind: the right line and the wrong one, for each package in the order above.
_LINES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "misspelt name": (
        ("    return highest - min(values)\n", "    return higest - min(values)\n"),
        ("        found[word] += 1\n", "        found[wrod] += 1\n"),
        ("        self.balance += amount\n", "        self.balance += amuont\n"),
        ("            found.append(grid[other][column])\n", "            found.append(grid[other][colum])\n"),
        ("            result.append(span)\n", "            result.append(spam)\n"),
    ),
    "misspelt attribute": (
        ("    return math.fsum(values) / len(values)\n", "    return math.fsums(values) / len(values)\n"),
        ('    return re.findall(r"[a-z]+", text.lower())\n', '    return re.findall(r"[a-z]+", text.lowr())\n'),
        ("        self.history.append(-amount)\n", "        self.history.apend(-amount)\n"),
        (
            "    return list(itertools.chain.from_iterable(grid))\n",
            "    return list(itertools.chain.from_iterables(grid))\n",
        ),
        (
            "        return self.first <= other.last and other.first <= self.last\n",
            "        return self.first <= other.last and other.frist <= self.last\n",
        ),
    ),
    "forgotten import": (
        ("import math\n", ""),
        ("import re\n", ""),
        ("import decimal\n", ""),
        ("import itertools\n", ""),
        ("import functools\n", ""),
    ),
    "forgotten colon": (
        ("    if not values:\n", "    if not values\n"),
        ("    for word in words(text):\n", "    for word in words(text)\n"),
        ("        if amount <= 0:\n", "        if amount <= 0\n"),
        ("        if other != row:\n", "        if other != row\n"),
        ("        if first > last:\n", "        if first > last\n"),
    ),
    "wrong operator": (
        ("    middle = len(ordered) // 2\n", "    middle = len(ordered) / 2\n"),
        ("    if not parts:\n", "    if parts:\n"),
        ("        self.balance -= amount\n", "        self.balance += amount  # less\n"),
        ("    if factor == 0:\n", "    if factor != 0:\n"),
        ("        if result and span.first <= ", "        if result and span.first >= "),
    ),
    "off by one": (
        (
            "    return mean(ordered[middle - 1 : middle + 1])\n",
            "    return mean(ordered[middle - 1 : middle])\n",
        ),
        ('    return text[: length - 1] + "…"\n', '    return text[:length] + "…"\n'),
        ("        if amount > self.balance:\n", "        if amount >= self.balance:\n"),
        (
            "    for other in range(max(0, row - 1), min(rows, row + 2)):\n",
            "    for other in range(max(0, row - 1), min(rows, row + 1)):\n",
        ),
        ("        return self.last - self.first + 1\n", "        return self.last - self.first\n"),
    ),
    "forgotten return": (
        ("    return max(low, min(value, high))\n", "    max(low, min(value, high))\n"),
        ("    return max(words(text), key=len)\n", "    max(words(text), key=len)\n"),
        ("    return source.balance\n", "    source.balance\n"),
        ("    return [list(column) for column in zip(*grid)]\n", "    [list(column) for column in zip(*grid)]\n"),
        ("    return functools.reduce(Span.joined, spans)\n", "    functools.reduce(Span.joined, spans)\n"),
    ),
    "wrong constant": (
        ("    return Counter(values).most_common(1)[0][0]\n", "    return Counter(values).most_common(1)[0][1] - 9\n"),
        ("def shortened(text, length=10):\n", "def shortened(text, length=9):\n"),
        ("    def __init__(self, owner, balance=0):\n", "    def __init__(self, owner, balance=1):\n"),
        ("def scaled(grid, factor=1):\n", "def scaled(grid, factor=2):\n"),
        ("def merged(spans, gap=0):\n", "def merged(spans, gap=1):\n"),
    ),
}


def _faults() -> Iterator[Fault]:
    for kind, lines in _LINES.items():
        for package, (right, wrong) in zip(PACKAGES, lines, strict=True):
            yield Fault(package, kind, right, wrong)


FAULTS = tuple(_faults())
ONE_OF_EACH_KIND = tuple({each.kind: each for each in FAULTS}.values())
