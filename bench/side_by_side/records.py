"""The file of results: JSON lines, appended as they come, so that a run that was stopped can go on. Owns its form; measures nothing."""

import json
import os
import pathlib


def key(system, row, number):
    """What tells a run from all others."""
    return (system, json.dumps(row, sort_keys=True), number)


class Records:
    """Appends records and knows the runs that are there."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.all = []
        if self.path.exists():
            self._read()

    def _read(self):
        """Takes what is there. A last line without its end was being written when the run was killed: it is cut off."""
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                self.all.append(json.loads(line))
            except ValueError as error:
                raise SystemExit(f"{self.path}:{number}: not a record: {error}") from None
        if len(whole) != len(content):
            os.truncate(self.path, len(whole))

    def append(self, **fields):
        self.all.append(fields)
        with open(self.path, "a") as file:
            file.write(json.dumps(fields) + "\n")

    def of_kind(self, kind):
        return [record for record in self.all if record["kind"] == kind]

    def done(self):
        """The runs that need no other try. What failed is told and not tried again; the reader sees why."""
        return {key(run["system"], run["row"], run["round"]) for run in self.of_kind("run")}

    def skipped(self):
        return {key(run["system"], run["row"], 0) for run in self.of_kind("run") if "skipped" in run}

    def reports(self, system, **row):
        """The reports of a system by round, of the rows that have these values."""
        found = {}
        for run in self.of_kind("run"):
            if run["system"] == system and "report" in run and all(run["row"].get(name) == value for name, value in row.items()):
                found[run["round"]] = run["report"]
        return found
