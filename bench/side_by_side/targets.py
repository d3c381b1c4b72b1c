"""The table of targets: its cells, and the experiments that are no cell of the matrix. Each verdict is in `judge`.

Every experiment runs its arms in turn, the order turned round every other pair, and returns records of kind `target`.
"""

import json
import shutil
import subprocess
import time

from . import judge, plan
from .lab import GENERATOR_CPU, SERVER_CPU, Failed
from .rounds import MISS_KEYS, Steady, load, pattern, put_once
from .systems import Forebay

SIZES = ("1MiB", "4MiB")
PAIRS = 5
SECONDS = 2.0
CONNECTIONS = 16
# Requests a second at which neither the store nor the generator on their one CPU is busy for more than a part of the time.
MISS_RATE = {"1MiB": 60, "4MiB": 20}
# A bucket in the same region as others measure it: the time to its first byte, and what one stream brings.
FAR_FIRST_BYTE_MS, FAR_BYTES_PER_S = 20, 100 << 20
HERD_CLIENTS = 1000
HERD_ROUNDS = 5
LETTERS = "abcdefghij"


def cells(letters, pairs, seconds):
    """The cells that verdicts are made of."""
    shape = {"rounds": pairs, "seconds": seconds}
    found = []
    for size in SIZES:
        if set("abfj") & set(letters):
            found.append(plan.Cell("hit-ram", size, CONNECTIONS, True, **shape))
        if set("bf") & set(letters):
            found.append(plan.Cell("hit-ram", size, CONNECTIONS, False, **shape))
        if "j" in letters:
            found.append(plan.Cell("hit-ram", size, 1024, True, only=("forebay",), **shape))
        if "d" in letters and size == "1MiB":
            found += [plan.Cell("hit-ram", size, 64, tls, ranged=True, **shape) for tls in (True, False)]
    if "c" in letters:
        found += [plan.Cell("hit-disk", size, CONNECTIONS, tls, **shape) for size in SIZES for tls in (True, False)]
    return found


def expected_seconds(letters, pairs, seconds):
    """Of the experiments alone."""
    run = plan.WARMUP_SECONDS + seconds + plan.OVERHEAD_SECONDS
    warm = plan.START_SECONDS + plan.WARM_PASSES * plan.DISK_SET_BYTES / plan.WARM_BYTES_PER_SECOND
    each = {"c": 2 * pairs * (run + 1) + warm + 12, "e": 12 * pairs * run + 10, "g": 4 * pairs * run + 5, "h": pairs * (plan.PUT_SECONDS + run) + 5,
            "i": 2 * pairs * run + 6}
    return sum(2 * cost for letter, cost in each.items() if letter in letters)


def once(arm):
    """Runs an arm that brings no report, or that reads from disk."""
    return arm()


def alternate(arms, pairs, run=None):
    """Runs each arm once a pair, in turned order every other pair; the results by arm. `run` runs one: by default a steady one, whose
    result is a report."""
    results, run = {name: [] for name in arms}, run or Steady().run
    for number in range(pairs):
        for name in list(arms) if number % 2 == 0 else list(arms)[::-1]:
            results[name].append(run(arms[name]))
    return results


def by_round(reports):
    return dict(enumerate(reports, 1))


def brief(report):
    """What of a run stays beside its verdict."""
    names = ("server_cpu_s_per_gib", "gib_per_s", "requests_per_s", "latency_us", "device_bytes_read", "bytes", "generator_busy",
             "server_core_busy", "owner_share", "warnings")
    return {name: report[name] for name in names if report.get(name) is not None}


class Experiments:
    """What is measured of Forebay beside itself, the store and fio."""

    def __init__(self, lab, pairs, seconds, progress):
        self.lab, self.pairs, self.seconds, self.progress = lab, pairs, seconds, progress

    def run(self, letters, found):
        """Appends the verdicts of the experiments that are wanted and not there yet."""
        have = {record["name"] for record in found.of_kind("target")}
        table = {"c": self.beside_fio, "e": self.miss, "g": self.hop, "h": self.writeback, "i": self.two_cores}
        for letter, experiment in table.items():
            if letter not in letters:
                continue
            for size in SIZES:
                self._one(experiment, size, have, found)
            if letter == "e":
                self._one(self.herd, "1MiB", have, found)

    def _one(self, experiment, size, have, found):
        name = experiment.__name__.replace("_", " ")
        if any(record.get("experiment") == f"{name} {size}" for record in found.of_kind("target")):
            return
        self.progress.say(f"{name}, {size}")
        try:
            verdicts = experiment(size)
        except Failed as failure:
            verdicts = [judge.verdict(f"{name}, {size}", judge.LOWER, 0, "", [], "", why=f"failed: {failure}")]
        for verdict in verdicts:
            found.append(**verdict, experiment=f"{name} {size}")
            show(verdict, self.progress)

    def system(self, group, tls, **more):
        """A Forebay of its own for an experiment; the caller clears it."""
        system = Forebay(self.lab, **more)
        system.start(group, {tls})
        return system

    def get(self, system, cell, keys, *words, seconds=None):
        return self.lab.generate("get", system.target(cell), *load(cell), "--keys", keys, *system.words(cell), *words,
                                 seconds=seconds or self.seconds, servers=system.servers_of(cell.tls))

    def warm(self, system, cell, keys, seconds):
        for _ in range(4):
            self.lab.reset_store()
            report = self.get(system, cell, keys, "--key-pattern", pattern(), "--order", "sequential", "--verify", "all", seconds=seconds)
            if self.lab.store_gets() == 0 and report["requests"] >= keys:
                return
        raise Failed("its hits still come from the store")

    # ---- c ----

    def beside_fio(self, size):
        """Reads of what is on disk only, plain, beside fio with direct=1 on a file of the same length at the same depth."""
        if not shutil.which("fio"):
            raise Failed("fio is not installed")
        cell = plan.Cell("hit-disk", size, CONNECTIONS, False)
        group = plan.Group("hit-disk", size, [cell])
        path = self.lab.folder / "fio.dat"
        system = None
        try:
            self._fio(path, size, "--rw=write", "--end_fsync=1")
            system = self.system(group, False, memory=0)
            self.warm(system, cell, group.keys(), group.set_bytes() / plan.WARM_BYTES_PER_SECOND)
            arms = {"ours": lambda: self.get(system, cell, group.keys(), "--key-pattern", pattern()),
                    "fio": lambda: self._fio(path, size, "--rw=randread", f"--runtime={self.seconds}", "--time_based", "--ramp_time=0.3")}
            results = alternate(arms, self.pairs, run=once)
        finally:
            path.unlink(missing_ok=True)
            if system:
                system.clear()
        ratios = [ours["gib_per_s"] / theirs for ours, theirs in zip(results["ours"], results["fio"])]
        device = [report["device_bytes_read"] / report["bytes"] for report in results["ours"] if "device_bytes_read" in report]
        how = (f"{size} hits, plain, no RAM tier, {CONNECTIONS} connections, beside fio randread direct=1 io_uring depth {CONNECTIONS}; "
               f"device bytes for each byte served: {min(device, default=0):.2f} … {max(device, default=0):.2f}")
        return [judge.verdict(f"disk-resident hit, plain, {size}: throughput beside fio", judge.HIGHER, 0.90, "fio", ratios, how,
                              ours=[brief(report) for report in results["ours"]], fio_gib_per_s=results["fio"])]

    def _fio(self, path, size, *words):
        """One job of fio on the server's CPU; GiB/s of reads."""
        command = ["taskset", "-c", SERVER_CPU, "fio", "--name=disk", f"--filename={path}", f"--size={plan.DISK_SET_BYTES}",
                   f"--bs={plan.SIZES[size]}", "--direct=1", "--ioengine=io_uring", f"--iodepth={CONNECTIONS}", "--output-format=json", *words]
        done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120)
        if done.returncode != 0:
            raise Failed(f"fio: {done.stderr.strip()[-200:]}")
        return json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]["read"]["bw_bytes"] / plan.GIB

    # ---- e ----

    def miss(self, size):
        """What a miss takes more than the store itself: one at a time, at a fixed rate, and from a store as far off as a bucket is."""
        return [verdict for tls in (True, False) for verdict in self._miss(size, tls)]

    def _miss(self, size, tls):
        cell = plan.Cell("miss", size, 1, tls)
        rated = plan.Cell("miss", size, CONNECTIONS, tls)
        system = self.system(plan.Group("miss", size, [cell]), tls)
        rate = ["--rate", MISS_RATE[size], "--arrivals", "fixed"]

        def ours(cell, *words, far=False):
            self.lab.reset_store()
            if far:
                self.lab.remove_store(FAR_FIRST_BYTE_MS, FAR_BYTES_PER_S)
            return self.get(system, cell, MISS_KEYS, "--order", "sequential", "--key-pattern", pattern(self.lab.fresh_prefix() + "-"), *words)

        def store(cell, *words, far=False):
            self.lab.reset_store()
            if far:
                self.lab.remove_store(FAR_FIRST_BYTE_MS, FAR_BYTES_PER_S)
            return self.lab.generate("get", self.lab.store_url(), *load(cell), "--keys", MISS_KEYS, "--order", "sequential", "--key-pattern",
                                     pattern(self.lab.fresh_prefix() + "-"), *words, seconds=self.seconds)
        try:
            arms = {"one": lambda: ours(cell), "store one": lambda: store(cell),
                    "rate": lambda: ours(rated, *rate), "store rate": lambda: store(rated, *rate),
                    "far": lambda: ours(cell, far=True), "store far": lambda: store(cell, far=True)}
            results = alternate(arms, self.pairs)
        finally:
            system.clear()
        verdicts = []
        far = f"1 connection, store {FAR_FIRST_BYTE_MS} ms away at {FAR_BYTES_PER_S >> 20} MiB/s"
        for arm, text in (("one", "1 connection"), ("rate", f"{MISS_RATE[size]} a second"), ("far", far)):
            added = [(a["latency_us"]["p50"] - b["latency_us"]["p50"]) / 1000 for a, b in zip(results[arm], results[f"store {arm}"])]
            own = [report["latency_us"]["p50"] / 1000 for report in results[f"store {arm}"]]
            wire = "TLS" if tls else "plain"
            how = (f"{size} objects never asked for before, {wire}, {text}, less the same generator straight at the store (plain, "
                   f"p50 {min(own):.2f} … {max(own):.2f} ms), whole objects; store and generator share a CPU")
            verdicts.append(judge.verdict(f"miss, {wire}, {size}, {text}: p50 over the store's own", judge.LOWER, 1.0, "", added, how, unit="ms",
                                          ours=[brief(report) for report in results[arm]],
                                          store=[brief(report) for report in results[f"store {arm}"]]))
        return verdicts

    def herd(self, size):
        """A thousand clients for one key that nobody has asked for: what the store sees of them."""
        cell = plan.Cell("miss", size, HERD_CLIENTS, True)
        system = self.system(plan.Group("miss", size, [cell]), True)
        gets, slowest = [], []
        try:
            for _ in range(HERD_ROUNDS):
                self.lab.reset_store()
                report = self.lab.generate("get", system.target(cell), "--size", size, "--connections", HERD_CLIENTS, "--keys", 1, "--warmup", 0,
                                           "--key-pattern", pattern(self.lab.fresh_prefix() + "-"), "--verify", "sample", *system.words(cell),
                                           seconds=2, servers=system.servers_of(True))
                if report["errors"]:
                    raise Failed(f"errors in the herd: {report['errors']}")
                gets.append(self.lab.store_gets())
                slowest.append(report["latency_us"]["max"] / 1000)
        finally:
            system.clear()
        how = f"{HERD_CLIENTS} connections over TLS ask for one new {size} object at once, {HERD_ROUNDS} keys; GETs that the store counted"
        return [judge.verdict(f"herd of {HERD_CLIENTS:,}: GETs of the store", judge.LOWER, 1, "", [float(count) for count in gets], how,
                              unit="GETs", slowest_ms=slowest)]

    # ---- g, h, i ----

    def hop(self, size):
        """Two cores: requests that land on the owner's core beside those that do not."""
        if "--core-choice" not in self.lab.generator_help["get"]:
            raise Failed("the generator knows no --core-choice")
        cell = plan.Cell("hit-ram", size, CONNECTIONS, True)
        group = plan.Group("hit-ram", size, [cell])
        system = self.system(group, True, shards=2, limited=False, cpu=f"{SERVER_CPU},{GENERATOR_CPU}")
        try:
            self.warm(system, cell, group.keys(), 2)
            def arm(choice, *words):
                return lambda: self.get(system, cell, group.keys(), "--key-pattern", pattern(), "--core-choice", choice, *words)
            # Latency at a rate at which nothing queues: at full load it says what the throughput says.
            quiet = ["--rate", MISS_RATE[size], "--arrivals", "fixed"]
            results = alternate({"owner": arm("owner"), "wrong": arm("wrong"), "quiet owner": arm("owner", *quiet),
                                 "quiet wrong": arm("wrong", *quiet)}, self.pairs)
        finally:
            system.clear()
        shares = [f"{name} {reports[0].get('owner_share')}" for name, reports in results.items()]
        how = f"{size} hits in RAM over TLS, --shards 2 on both CPUs, the generator on one of them; share that met its owner: {', '.join(shares)}"
        wrong, owner = by_round(results["wrong"]), by_round(results["owner"])
        added = [float(a["latency_us"]["p50"] - b["latency_us"]["p50"]) for a, b in zip(results["quiet wrong"], results["quiet owner"])]
        kept = {name: [brief(report) for report in reports] for name, reports in results.items()}
        return [judge.verdict(f"hop, {size}: CPU on the wrong core", judge.LOWER, 1.10, "the owner's core",
                              judge.ratios_of(wrong, owner, judge.cpu), how, **kept),
                judge.verdict(f"hop, {size}: p50 on the wrong core over the owner's", judge.LOWER, 50, "", added,
                              f"{how}; at {MISS_RATE[size]} requests a second", unit="µs")]

    def writeback(self, size):
        """PUTs that are acknowledged from disk, beside hits in RAM."""
        put, hit = plan.Cell("put", size, CONNECTIONS, True), plan.Cell("hit-ram", size, CONNECTIONS, True)
        puts, hits = plan.Group("put", size, [put]), plan.Group("hit-ram", size, [hit])
        writer = Forebay(self.lab, name="forebay-writes")
        reader = self.system(hits, True)

        def write():
            try:
                return put_once(self.lab, writer, puts, put)
            finally:
                writer.clear()
        try:
            self.warm(reader, hit, hits.keys(), 2)
            results = alternate({"put": write, "hit": lambda: self.get(reader, hit, hits.keys(), "--key-pattern", pattern())}, self.pairs)
        finally:
            reader.clear()
        how = f"PUTs of {size} over TLS, acknowledged from disk, uploads held back, beside hits in RAM over TLS, {CONNECTIONS} connections"
        return [judge.verdict(f"PUT writeback, {size}: CPU", judge.LOWER, 1.3, "the TLS hit's",
                              judge.ratios_of(by_round(results["put"]), by_round(results["hit"]), judge.cpu), how,
                              **{name: [brief(report) for report in reports] for name, reports in results.items()})]

    def two_cores(self, size):
        """One core beside two; the generator has the same two CPUs both times."""
        cell = plan.Cell("hit-ram", size, CONNECTIONS, True)
        group = plan.Group("hit-ram", size, [cell])
        both = f"{SERVER_CPU},{GENERATOR_CPU}"
        systems = {}
        words = ["--key-pattern", pattern(), "--threads", 2, "--pin", both]
        try:
            systems["one"] = self.system(group, True, name="forebay-one", limited=False)
            systems["two"] = self.system(group, True, name="forebay-two", shards=2, limited=False, cpu=both)
            for system in systems.values():
                self.warm(system, cell, group.keys(), 2)
            results = alternate({name: self._paused(systems, name, cell, group, words) for name in systems}, self.pairs)
        finally:
            for system in systems.values():
                system.clear()
        how = f"{size} hits in RAM over TLS, {CONNECTIONS} connections; the generator on the same two CPUs, two threads, both times"
        return [judge.verdict(f"2 cores over 1, {size}: CPU", judge.LOWER, 1.10, "1 core",
                              judge.ratios_of(by_round(results["two"]), by_round(results["one"]), judge.cpu), how,
                              **{name: [brief(report) for report in reports] for name, reports in results.items()})]

    def _paused(self, systems, name, cell, group, words):
        def run():
            for other, system in systems.items():
                system.pause(other != name)
            time.sleep(0.1)
            return self.get(systems[name], cell, group.keys(), *words)
        return run


def judge_cells(found, systems, letters):
    """The verdicts over the cells of a run."""
    court = judge.Judge(found, systems)
    verdicts = {}
    for size in SIZES:
        for table in (court.ram(size, plan.SIZES[size]), court.disk(size, plan.SIZES[size])):
            for letter, targets in table.items():
                verdicts.setdefault(letter, []).extend(targets)
    verdicts.update(court.ranges(plan.SIZES["1MiB"], plan.RANGE_BYTES))
    return [verdict for letter in sorted(verdicts) if letter in letters for verdict in verdicts[letter]]


def show(verdict, progress):
    if verdict["value"] is None:
        progress.say(f"  {verdict['name']}: NOT MEASURED ({verdict.get('why')})")
        return
    mark = "met" if verdict["met"] else "MISSED"
    progress.say(f"  {verdict['name']}: {verdict['value']:.3f} ({verdict['low']:.3f} … {verdict['high']:.3f}) {verdict['unit']}, "
                 f"wanted {verdict['target']}: {mark}")
