"""What stands in the way of a target that is not met, in a sentence. Nothing here measures.

The floor and the processor time are measured. What ours does besides is known from the code, and how much of the time
it takes is not measured by this command: a profile says it (`py-spy record -- qo run …`).
"""

from __future__ import annotations

from tests.benchmarks.rows import Row

A_RUN = "every run is a flow run in Prefect and rows in a journal that are on the disk before anything changes"
BY_ID = {
    "P1": A_RUN,
    "P3": f"{A_RUN}; each step has a record, and what was there before it",
    "P4": f"{A_RUN}; each step has a record, and what was there before it",
    "P6": f"{A_RUN}; each append is a step that waits for the one before",
    "P7": "each script is started so that it can be limited and ended with all its children, and its end is recorded",
    "P9": "what the journal holds is read, and what was in flight is put back, before the rest runs",
    "P10": "each file is looked at before it is put back, as somebody may have changed it since",
    "P11": "each instruction is judged with its place in the text, and planned in memory to the byte",
    "P12": f"{A_RUN}; each file is looked at by its content before it counts as unchanged",
}


def obstacle(row: Row) -> str:
    """What is measured of it first, then what is known."""
    if row.ours is None:
        return "ours failed"
    if row.floor and row.beside and row.target and row.floor / row.beside > row.target:
        return f"the floor itself is {row.floor / row.beside:.3g} × theirs"
    known = [BY_ID[row.id]] if row.id in BY_ID else []
    spent = [f"{row.processor:.2f} s of processor time, services included"] if row.processor else []
    return "; ".join([*spent, *known]) or "not known"
