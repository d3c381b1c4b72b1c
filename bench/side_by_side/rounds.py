"""Runs the cells of a plan: starts systems, warms and verifies them, measures each in its turn, and checks that a hit was one.

Owns no process (see lab) and decides no verdict. What cannot be measured becomes a record with its reason.
"""

import time

from . import plan, records
from .lab import Failed

WARM_CONNECTIONS = 16
WARM_TRIES = 6
# A cache may want to see an object more than once before it is kept in RAM.
WARM_PASSES_RAM = 4
# All objects once, from the slowest store and disk.
WARM_SECONDS_MAX = 180
# A hit that went to the store is none; a few of them are allowed, since a cache may drop what it likes.
STORE_SHARE_MAX = 0.01
# Of all bytes served: above this in RAM, or below that on disk, the row is not what it says. One sixth may come from memory.
DEVICE_SHARE_RAM_MAX = 0.05
DEVICE_SHARE_DISK_MIN = 0.6
RESTARTS_MAX = 4
# Requests are many more than this in any run; keys of misses must not end.
MISS_KEYS = 100_000_000


def pattern(prefix=""):
    return "synthetic/{size}/" + prefix + "{i}"


def load(cell, *words):
    """Words of the generator for a cell's load."""
    return ["--size", cell.size, "--connections", cell.connections, "--warmup", cell.warmup_seconds(), *words]


class Steady:
    """Makes a run again from which the hypervisor took too much of the machine; see plan. Not for runs that read from disk: what a
    virtual disk costs its host looks the same, and comes each time."""

    def __init__(self):
        self.seconds_left = plan.STOLEN_SECONDS_MAX

    def run(self, measure):
        """The report that `measure()` brings, the last one if there were several."""
        for _ in range(plan.STOLEN_TRIES):
            began = time.monotonic()
            report = measure()
            if report.get("stolen_share", 0) <= plan.STOLEN_SHARE_MAX or self.seconds_left <= 0:
                break
            self.seconds_left -= time.monotonic() - began
        return report


class Rounds:
    """Measures cells of `systems` (by name) into `found`."""

    def __init__(self, lab, systems, found, progress):
        self.lab, self.systems, self.found, self.progress = lab, systems, found, progress
        self.broken, self.restarts, self.given_up = {}, {}, {}
        self.steady = Steady()

    def run(self, cells):
        for group in plan.groups(cells):
            if group.workload == "put":
                self._puts(group)
                continue
            self.broken, self.restarts, self.given_up = {}, {}, {}
            try:
                for phase in plan.phases(group):
                    self._phase(group, phase)
            finally:
                for system in self.systems.values():
                    if system.group is not None:
                        system.clear()
                        system.group = None

    def _pending(self, cells):
        """The turns that are to be run. What a system cannot do is recorded on the way."""
        done = self.found.done()
        pending = []
        for number, position, cell, name in plan.turns(cells, list(self.systems)):
            reason = self.systems[name].cannot(cell)
            if records.key(name, cell.row(), number) in done:
                continue
            if reason is None:
                pending.append((number, position, cell, name))
            elif number == 1:
                self._record(number, position, cell, name, skipped=reason)
        return pending

    def _record(self, number, position, cell, name, **what):
        self.found.append(kind="run", system=name, row=cell.row(), round=number, position=position, **what)

    def _phase(self, group, cells):
        pending = self._pending(cells)
        here = {name: [cell for _, _, cell, other in pending if other == name] for _, _, _, name in pending}
        for name, its_cells in here.items():
            self._ready(name, group, its_cells)
        for at, (number, position, cell, name) in enumerate(pending):
            try:
                if name in self.broken or (name, cell) in self.given_up:
                    raise Failed(self.broken.get(name) or self.given_up[name, cell])
                report = self._measure(self.systems[name], group, cell, number)
                self._record(number, position, cell, name, report=report)
                self.progress.told(cell, number, name, report)
            except Failed as failure:
                self._record(number, position, cell, name, failed=str(failure))
                self.progress.failed(cell, number, name, failure)
                if name in self.broken or (name, cell) in self.given_up:
                    continue
                if cell.is_heavy() or self._has_ended(name):
                    self.given_up[name, cell] = f"not tried again after round {number}: {failure}"
                if any(its == name and (name, other) not in self.given_up for _, _, other, its in pending[at + 1:]):
                    self._revive(name, group, here[name])

    def _ready(self, name, group, cells):
        """Starts and warms a system; leaves it paused. One that cannot is broken for the rest of the group."""
        system = self.systems[name]
        self.progress.say(f"{name}: starting and warming for {group.workload} {group.size}")
        try:
            if system.group is None or not system.serves_both or not system.servers:
                system.stop()
                system.start(group, {cell.tls for cell in cells})
            system.pause(False)
            if group.workload != "miss":
                self._warm(system, group, cells)
            system.pause(True)
        except Failed as failure:
            self.broken[name] = f"not ready: {failure}"
            self.progress.say(f"{name}: {self.broken[name]}")
            system.stop()

    def _has_ended(self, name):
        return any(server.process.poll() is not None for server in self.systems[name].servers)

    def _revive(self, name, group, cells):
        """A system that failed gets another start, for it may still be at what it failed at; but not for ever."""
        self.restarts[name] = self.restarts.get(name, 0) + 1
        if self.restarts[name] > RESTARTS_MAX:
            self.broken[name] = f"it failed {self.restarts[name]} times in this group"
            return
        self.systems[name].stop()
        self._ready(name, group, cells)

    def _warm(self, system, group, cells):
        """Reads everything until nothing of it comes from the store any more; every byte is compared."""
        for cell in sorted(cells, key=lambda cell: cell.tls):
            target = system.target(cell)
            # One cache serves both, where both are served: what was read over TLS need not be read again for plain.
            place = (target.split("/", 3)[3] if system.serves_both else target, *system.warm_words(cell))
            if place in system.warmed:
                continue
            self._warm_one(system, group, cell, target)
            system.warmed.add(place)

    def _warm_one(self, system, group, cell, target):
        """Whole passes, so that the last one met every object; none of it from the store."""
        count = group.keys() * (1 if group.workload == "hit-disk" else WARM_PASSES_RAM)
        for _ in range(WARM_TRIES):
            # While it fills, a cache may fail; not once it is full.
            self.lab.reset_store()
            report = self.lab.generate(
                "get", target, "--count", count, "--keys", group.keys(), "--key-pattern", pattern(), "--size", cell.size, "--order", "sequential",
                "--verify", "all", "--connections", WARM_CONNECTIONS, *system.warm_words(cell), seconds=WARM_SECONDS_MAX,
                servers=system.servers_of(cell.tls), complete=False)
            if report["requests"] == count and self.lab.store_gets() == 0:
                return
        if report["requests"] < count:
            raise Failed(f"{report['requests']} of {count} objects were read, errors {report['errors']}")
        self.progress.say(f"{system.name}: still asks the store after {WARM_TRIES} times all objects")

    def _measure(self, system, group, cell, number):
        def once():
            return self._measure_once(system, group, cell, number)
        return once() if cell.workload == "hit-disk" else self.steady.run(once)

    def _measure_once(self, system, group, cell, number):
        is_miss = cell.workload == "miss"
        keys = ["--keys", MISS_KEYS, "--order", "sequential", "--key-pattern", pattern(self.lab.fresh_prefix() + "-")] if is_miss \
            else ["--keys", group.keys(), "--key-pattern", pattern(), "--seed", cell.seed(number)]
        self.lab.reset_store()
        system.pause(False)
        try:
            report = self.lab.generate("get", system.target(cell), *load(cell), *keys, *system.words(cell), "--verify", "sample",
                                       seconds=cell.measured_seconds(), servers=system.servers_of(cell.tls))
            if cell.is_heavy():
                self.lab.let_settle(system.servers)
        finally:
            system.pause(True)
        check_source(cell, report, self.lab.store_gets(), self.lab.device)
        check_cipher(cell, report)
        return report

    # ---- writes ----

    def _puts(self, group):
        for number, position, cell, name in self._pending(group.cells):
            system = self.systems[name]
            try:
                report = put_once(self.lab, system, group, cell)
                self._record(number, position, cell, name, report=report)
                self.progress.told(cell, number, name, report)
            except Failed as failure:
                self._record(number, position, cell, name, failed=str(failure))
                self.progress.failed(cell, number, name, failure)
            finally:
                system.clear()
                system.group = None


def put_once(lab, system, group, cell):
    """The report of PUTs into a new cache that hands nothing on meanwhile. The caller clears the system."""
    system.start(group, {cell.tls})
    lab.reset_store()
    words = [word for word in system.words(cell)]
    report = lab.generate("put", system.target(cell), "--count", plan.PUT_BYTES // cell.size_bytes, "--size", cell.size, "--key-pattern",
                          "{i}", "--connections", cell.connections, *words, servers=system.servers_of(cell.tls))
    uploads = sum(count for name, count in lab.store_stats()["requests"].items() if name.startswith("PUT "))
    if uploads:
        raise Failed(f"{uploads} objects were uploaded meanwhile: that is another load")
    check_cipher(cell, report)
    return report


def check_source(cell, report, store_gets, device):
    """Raises for a hit that was none and a miss that was none; warns of what did not come from where the row says."""
    requests = report["requests"] + sum(report["errors"].values())
    if cell.workload == "miss":
        if store_gets < 0.9 * requests:
            raise Failed(f"not misses: {store_gets} GETs of the store for {requests} requests")
        return
    if store_gets > STORE_SHARE_MAX * requests:
        raise Failed(f"not hits: {store_gets} GETs of the store for {requests} requests")
    if not device:
        return
    share = report["device_bytes_read"] / max(report["bytes"], 1)
    if cell.workload == "hit-ram" and share > DEVICE_SHARE_RAM_MAX:
        report["warnings"].append(f"{share:.2f} bytes came from the device for each byte served: not all from RAM")
    if cell.workload == "hit-disk" and share < DEVICE_SHARE_DISK_MIN:
        report["warnings"].append(f"only {share:.2f} bytes came from the device for each byte served")


def check_cipher(cell, report):
    """All systems must encrypt alike: a faster cipher would win for another reason."""
    if cell.tls and "AES_128_GCM" not in (report.get("tls") or ""):
        raise Failed(f"the cipher is {report.get('tls')}, not AES-128-GCM")


class Progress:
    """Lines for who waits."""

    def __init__(self, expected_s):
        self.started, self.expected_s = time.monotonic(), expected_s

    def say(self, text):
        elapsed = time.monotonic() - self.started
        print(f"[{clock(elapsed)} of about {clock(self.expected_s)}] {text}", flush=True)

    def told(self, cell, number, name, report):
        cpu = report.get("server_cpu_s_per_gib")
        cost = f"{cpu:.3f} CPU s/GiB, " if cpu is not None else ""
        self.say(f"{cell}, round {number}: {name} {cost}{report['gib_per_s']:.2f} GiB/s, {report['requests_per_s']:.0f} requests/s")

    def failed(self, cell, number, name, reason):
        self.say(f"{cell}, round {number}: {name} FAILED: {reason}")


def clock(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
