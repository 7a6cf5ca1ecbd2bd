"""What stands in the way of a target that is not met, in a sentence. Nothing here measures.

The floor and the processor time are measured. What ours does besides is known from the code, and how much of the time
it takes is not measured by this command: a profile says it (`py-spy record -- qo run …`).
"""

from __future__ import annotations

from tests.benchmarks.rows import Row

A_RUN = "Every run is a flow run in Prefect, and rows in a journal that are on the disk before anything changes."
KNOWN = {
    "P1": A_RUN,
    "P3": f"{A_RUN} Each step has a record, and what was there before it is kept.",
    "P4": f"{A_RUN} Each step has a record, and what was there before it is kept.",
    "P6": f"{A_RUN} Each append is a step that waits for the one before.",
    "P7": "Each script is started so that it can be limited, and ended with all its children; its end is recorded.",
    "P8": "Where the floor is above the target, the graph is: no scheduler can keep to it.",
    "P9": "What the journal holds is read, and what was in flight is put back, before the rest runs.",
    "P10": "Each file is looked at before it is put back, as somebody may have changed it since.",
    "P11": "Each instruction is judged with its place in the text, and planned in memory to the byte.",
    "P12": "Each file is looked at before it counts as unchanged, and the run is put on record; no server is asked.",
}
"""By the id of the row."""


def measured(row: Row) -> str:
    """What the figures say of it."""
    if row.ours is None:
        return "ours failed"
    parts = []
    if row.floor and row.beside and row.target and row.floor / row.beside > row.target:
        parts.append(f"the floor itself is {row.floor / row.beside:.3g} × theirs")
    if row.processor:
        parts.append(f"{row.processor:.2f} s of processor time, services included")
    return ", ".join(parts)


def known(number: str) -> str:
    """What ours does besides; it is said where there is nothing."""
    return KNOWN.get(number, "Not known.")
