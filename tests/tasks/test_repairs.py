"""What rules propose for a failure: the likeliest first, for the line in question alone, and nothing else."""

from __future__ import annotations

from quantum_orchestrator.tasks.failures import Failure, Place
from quantum_orchestrator.tasks.repairs import proposals

SHOP = b'''\
"""A shop."""

from __future__ import annotations


def total(prices: list[float]) -> float:
    result = sum(prices)
    return resalt
'''


def proposed(kind: str, message: str, line: int, content: bytes = SHOP, path: str = "shop.py") -> list[bytes]:
    failure = Failure(kind, message, (Place(path, line),))
    return [each.contents[path] for each in proposals([failure], {path: content}.get)]


def test_a_name_that_python_suggests_comes_first() -> None:
    first, *_ = proposed("NameError", "name 'resalt' is not defined. Did you mean: 'result'?", 8)
    assert first == SHOP.replace(b"resalt", b"result")


def test_a_name_of_the_file_that_is_nearly_the_same_will_do() -> None:
    assert proposed("NameError", "name 'resalt' is not defined", 8) == [SHOP.replace(b"resalt", b"result")]


def test_a_module_of_the_standard_library_is_imported_after_the_docstring_and_the_future() -> None:
    content = SHOP.replace(b"return resalt", b"return math.fsum(prices)")
    first, *_ = proposed("NameError", "name 'math' is not defined", 8, content)
    assert first == content.replace(b"annotations\n", b"annotations\n\nimport math\n", 1)


def test_an_attribute_and_an_export_are_written_as_they_are_meant() -> None:
    attribute = "'list' object has no attribute 'appendd'. Did you mean: 'append'?"
    assert proposed("AttributeError", attribute, 1, b"[].appendd(1)\n") == [b"[].append(1)\n"]
    export = "cannot import name 'totl' from 'shop' (/work/shop.py). Did you mean: 'total'?"
    assert proposed("ImportError", export, 1, b"from shop import totl\n") == [b"from shop import total\n"]


def test_attributes_of_pythons_own_objects_are_known() -> None:
    for message, wrong, right in (
        ("'str' object has no attribute 'lowr'", b"text.lowr()\n", b"text.lower()\n"),
        ("module 'math' has no attribute 'fsums'", b"math.fsums(x)\n", b"math.fsum(x)\n"),
        ("type object 'itertools.chain' has no attribute 'from_iterables'", b"from_iterables\n", b"from_iterable\n"),
        ("module 'antigravity' has no attribute 'geohas'", b"antigravity.geohas\n", None),
    ):
        proposals_made = proposed("AttributeError", message, 1, wrong)
        assert proposals_made[:1] == ([] if right is None else [right])


def test_a_missing_colon_is_put_where_the_file_can_be_parsed_then() -> None:
    assert proposed("SyntaxError", "expected ':'", 1, b"if 1  # yes\n    pass\n") == [b"if 1:  # yes\n    pass\n"]
    assert proposed("SyntaxError", "expected ':'", 1, b"def f()\n    return (\n") == []


def test_nothing_is_proposed_for_what_no_rule_knows() -> None:
    assert proposed("AssertionError", "assert 2 == 3", 8) == []
    assert proposed("NameError", "name 'resalt' is not defined", 8, path="shop.txt") == []
    assert proposed("NameError", "name 'zzzzzz' is not defined", 800) == []
