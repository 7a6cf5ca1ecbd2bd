"""What is said of a run in Prefect's pages, on its diff."""

from __future__ import annotations

from quantum_orchestrator.flows.report import diff_page


def test_a_diff_is_fenced_by_more_backticks_than_it_holds() -> None:
    page = diff_page("+```python\n+````\n", "committed")
    assert page == "committed\n\n`````diff\n+```python\n+````\n`````\n"


def test_without_a_diff_there_is_the_summary_alone() -> None:
    assert diff_page("", "rolled back") == "rolled back\n"


def test_a_long_diff_is_cut_and_keeps_what_happened_to_refs() -> None:
    refs = "# git: HEAD refs/heads/a → refs/heads/b\n# git: refs/heads/b made at 1234567\n"
    page = diff_page("+" * 100 + "\n# git: no ref, but a line of the diff\n+\n" + refs, "committed", limit=10)
    assert page == f"committed\n\n```diff\n++++++++++\n… cut here\n{refs}```\n"
