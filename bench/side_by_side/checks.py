"""One row with generators that are not ours, so that nobody need trust ours: wrk for plain, h2load over TLS."""

import os
import pathlib
import re
import shutil
import statistics
import subprocess

from . import plan
from .lab import GENERATOR_CPU, RUN_SECONDS_SPARE, Failed
from .rounds import pattern
from .systems import Forebay
from .targets import alternate, once

SIZE = "1MiB"
# Small ranges: the server is the limit whoever asks. wrk reads 8 KiB at a time, and of whole objects takes half of what ours does.
RANGE = "64KiB"
CONNECTIONS = 16
PAIRS = 3
SECONDS = 2
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def expected_seconds():
    return 2 * (2 * PAIRS * (SECONDS + 1) + 5)


def cpu_seconds(pids):
    """User and system time of processes since they started."""
    total = 0
    for pid in pids:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS_PER_SECOND


def requests_per_second(text):
    """Of what wrk or h2load prints."""
    found = re.search(r"Requests/sec:\s+([\d.]+)", text) or re.search(r"finished in .*?, ([\d.]+) req/s", text)
    if not found:
        raise Failed(f"no rate in {text.strip()[-200:]!r}")
    return float(found.group(1))


class Checks:
    """Measures Forebay with both; the sides in turn."""

    def __init__(self, lab, found, progress):
        self.lab, self.found, self.progress = lab, found, progress

    def run(self):
        have = {record["name"] for record in self.found.of_kind("check")}
        for tls, program in ((False, "wrk"), (True, "h2load")):
            name = f"{program} beside forebay-bench, {'TLS' if tls else 'plain'}"
            if name in have:
                continue
            if not shutil.which(program):
                self.progress.say(f"{name}: {program} is not installed")
                continue
            try:
                self.found.append(kind="check", name=name, **self._check(program, tls))
            except Failed as failure:
                self.found.append(kind="check", name=name, text=f"failed: {failure}", a=None, b=None, ratio=None)
            self.progress.say(f"{name}: {self.found.all[-1]['text']}")

    def _check(self, program, tls):
        cell = plan.Cell("hit-ram", SIZE, CONNECTIONS, tls, ranged=True)
        system = Forebay(self.lab, name="forebay-check")
        system.start(plan.Group("hit-ram", SIZE, [cell]), {tls})
        try:
            ours = ["--size", SIZE, "--keys", 1, "--connections", CONNECTIONS, "--key-pattern", pattern(), *system.words(cell)]
            # Whole and often enough that it is in RAM.
            whole = [word for word in ours if word not in ("--range", RANGE)]
            self.lab.generate("get", system.target(cell), *whole, "--verify", "all", "--warmup", 0, seconds=1)
            arms = {"theirs": lambda: self._theirs(program, system, cell),
                    "ours": lambda: self._ours(system, cell, ours)}
            results = alternate(arms, PAIRS, run=once)
        finally:
            system.clear()
        rates = {name: statistics.median(rate for rate, _ in runs) for name, runs in results.items()}
        costs = {name: statistics.median(cost for _, cost in runs) for name, runs in results.items()}
        ratio = statistics.median(theirs[0] / ours[0] for theirs, ours in zip(results["theirs"], results["ours"]))
        text = (f"{RANGE} ranges of one {SIZE} object in RAM, {CONNECTIONS} connections, GiB/s and server CPU s/GiB: {program} {rates['theirs']:.2f} and {costs['theirs']:.3f}, "
                f"forebay-bench {rates['ours']:.2f} and {costs['ours']:.3f}; medians of {PAIRS} pairs in turn")
        return {"text": text, "a": rates["theirs"], "b": rates["ours"], "ratio": ratio, "cpu_a": costs["theirs"], "cpu_b": costs["ours"]}

    def _ours(self, system, cell, words):
        report = self.lab.generate("get", system.target(cell), *words, "--warmup", 0.2, seconds=SECONDS, servers=system.servers_of(cell.tls))
        return report["gib_per_s"], report["server_cpu_s_per_gib"]

    def _theirs(self, program, system, cell):
        """(GiB/s, server CPU s/GiB) as the other program counts requests and the kernel counts time."""
        url = system.target(cell) + f"synthetic/{SIZE}/0"
        header = system.words(cell)[1]
        words = {"wrk": ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s"],
                 "h2load": ["h2load", "--h1", "-t1", f"-c{CONNECTIONS}", "-D", SECONDS, "--tls13-ciphers", "TLS_AES_128_GCM_SHA256"]}[program]
        # wrk drops a header without the blank.
        words += ["-H", header, "-H", f"Range: bytes=0-{plan.RANGE_BYTES - 1}", url]
        pids = [pid for server in system.servers_of(cell.tls) for pid in server.pids()]
        before = cpu_seconds(pids)
        done = subprocess.run(["taskset", "-c", str(GENERATOR_CPU), *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=SECONDS + RUN_SECONDS_SPARE)
        used = cpu_seconds(pids) - before
        if "Non-2xx" in done.stdout or re.search(r"status codes: 0 2xx", done.stdout):
            raise Failed(f"{program} was refused: {done.stdout.strip()[-200:]}")
        if cell.tls and "AES_128_GCM" not in done.stdout:
            raise Failed(f"{program} took another cipher: {re.findall(r'Cipher: (.*)', done.stdout)}")
        gib = requests_per_second(done.stdout) * SECONDS * plan.RANGE_BYTES / plan.GIB
        return gib / SECONDS, used / gib
