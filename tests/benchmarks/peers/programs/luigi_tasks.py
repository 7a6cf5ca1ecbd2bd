"""The work as Luigi's tasks; what has no file of its own leaves one in done/, as Luigi knows no other state."""

import json
import subprocess
from pathlib import Path

import luigi

WORK = json.loads(Path("work.json").read_text())
ITEMS, KIND = WORK["items"], WORK["kind"]


class Write(luigi.Task):
    number = luigi.IntParameter()

    def output(self):
        return luigi.LocalTarget(ITEMS[self.number][0])

    def run(self):
        with self.output().open("w") as stream:
            stream.write(ITEMS[self.number][1])


class Marked(luigi.Task):
    number = luigi.IntParameter()

    def output(self):
        return luigi.LocalTarget(f"done/{self.number}")

    def run(self):
        self.work()
        self.output().open("w").close()


class Append(Marked):
    def requires(self):
        return [Append(number=self.number - 1)] if self.number else []

    def work(self):
        path, text = ITEMS[self.number]
        with open(path, "a") as stream:
            stream.write(text)


class Script(Marked):
    def work(self):
        subprocess.run([WORK["script"]], check=True)


Path("done").mkdir(exist_ok=True)
one = {"writes": Write, "chain": Append, "scripts": Script}[KIND]
wanted = [one(number=len(ITEMS) - 1)] if KIND == "chain" else [one(number=number) for number in range(len(ITEMS))]
done = luigi.build(wanted, local_scheduler=True, workers=2 if KIND == "scripts" else 1, log_level="WARNING")
raise SystemExit(not done)
