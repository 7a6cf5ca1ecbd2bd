"""Time and memory by the number of writes, from a result, as a small SVG: `plot.py RESULT.json PLOT.svg`."""

import json
import sys

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

mpl.rcParams.update({"svg.hashsalt": "benchmarks", "svg.fonttype": "none", "font.size": 9})


def points(rows: list, what: str) -> tuple:
    found = [row for row in rows if row["id"] == "P5" and not row["peer"] and row["workload"].endswith(what)]
    return zip(*[(int(row["workload"].split()[0]), row["ours"]) for row in found if row["ours"]], strict=True)


def main(result: str, plot: str) -> None:
    with open(result) as stream:
        measured = json.load(stream)
    figure, times = plt.subplots(figsize=(6, 3.6), layout="constrained")
    sizes, seconds = points(measured["rows"], "time")
    (line,) = times.loglog(sizes, seconds, "o-", color="#0969da", label="time (s)")
    (straight,) = times.loglog(
        sizes, [seconds[-1] * size / sizes[-1] for size in sizes], ":", color="#8c959f", label="a straight line"
    )
    times.set(xlabel="instructions", ylabel="seconds", title=f"qo run, independent writes ({measured['date']})")
    memory = times.twinx()
    sizes, megabytes = points(measured["rows"], "memory")
    (other,) = memory.loglog(sizes, megabytes, "s--", color="#bc4c00", label="memory (MB)")
    memory.set(ylabel="MB, all processes of the run", ylim=(min(50, *megabytes), max(1000, *megabytes)))
    times.legend(handles=[line, straight, other], loc="upper left", frameon=False)
    times.grid(True, which="major", alpha=0.3)
    figure.savefig(plot, metadata={"Date": None, "Creator": None})


main(*sys.argv[1:])
