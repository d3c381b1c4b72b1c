"""Turns runs into verdicts: the table of targets. Pure.

A ratio is taken pair by pair, of runs of the same round; its value is the median of the pairs, its spread their extremes.
"""

import statistics

PEERS_ARE_NOT = ("forebay",)
LOWER, HIGHER = "≤", "≥"


def cpu(report):
    return report["server_cpu_s_per_gib"]


def rate(report):
    return report["gib_per_s"]


def requests(report):
    return report["requests_per_s"]


def requests_per_cpu(report):
    """Requests for each second of the server's CPU time."""
    return report["requests"] / (report["server_cpu_user_s"] + report["server_cpu_system_s"])


def verdict(name, sign, limit, of, ratios, how, unit="ratio", **more):
    """A target's record from the values of its pairs."""
    target = f"{sign} {limit:g}{' × ' + of if unit == 'ratio' else ' ' + unit + (' ' + of if of else '')}"
    if not ratios:
        return {"kind": "target", "name": name, "target": target, "value": None, "low": None, "high": None, "unit": unit, "met": False,
                "how": how, "why": more.pop("why", "not measured"), **more}
    value = statistics.median(ratios)
    met = value <= limit if sign == LOWER else value >= limit
    return {"kind": "target", "name": name, "target": target, "value": value, "low": min(ratios), "high": max(ratios), "unit": unit,
            "met": met, "how": how, "pairs": ratios, **more}


def ratios_of(ours, theirs, figure):
    """Of reports by round."""
    return [figure(ours[number]) / figure(theirs[number]) for number in sorted(ours.keys() & theirs.keys()) if figure(theirs[number])]


def best_of(found, systems, row, figure, sign):
    """The name of the peer that is ahead of the others by its median, and its reports; None without any."""
    peers = {name: found.reports(name, **row) for name in systems if name not in PEERS_ARE_NOT}
    medians = {name: statistics.median(figure(report) for report in reports.values()) for name, reports in peers.items() if reports}
    if not medians:
        return None, {}
    best = (min if sign == LOWER else max)(medians, key=medians.get)
    return best, peers[best]


def row(workload, size_bytes, connections, tls, range_bytes=None):
    return {"workload": workload, "size_bytes": size_bytes, "range_bytes": range_bytes, "connections": connections, "tls": tls}


class Judge:
    """Verdicts over the records of a run. `systems` are the names that were measured."""

    def __init__(self, found, systems):
        self.found, self.systems = found, systems

    def beside(self, name, sign, limit, peer, its_row, figure, how):
        """Forebay beside one peer, or beside the `best` of all."""
        ours = self.found.reports("forebay", **its_row)
        if peer == "best peer":
            peer, theirs = best_of(self.found, self.systems, its_row, figure, sign)
            of = f"the best peer ({peer})" if peer else "the best peer"
        else:
            theirs, of = self.found.reports(peer, **its_row), peer
        return verdict(name, sign, limit, of, ratios_of(ours, theirs, figure), how)

    def within(self, name, sign, limit, of, row_a, row_b, figure, how):
        """Forebay in one row beside itself in another."""
        a, b = self.found.reports("forebay", **row_a), self.found.reports("forebay", **row_b)
        return verdict(name, sign, limit, of, ratios_of(a, b, figure), how)

    def ram(self, size, size_bytes):
        tls, plain = row("hit-ram", size_bytes, 16, True), row("hit-ram", size_bytes, 16, False)
        how = f"{size} hits in RAM, 16 connections, server CPU for each GiB, pairs in turn"
        return {
            "a": [self.beside(f"TLS hit in RAM, {size}: CPU beside nginx serving files", LOWER, 0.40, "nginx-static", tls, cpu, how),
                  self.beside(f"TLS hit in RAM, {size}: CPU beside nginx proxy_cache", LOWER, 0.40, "nginx", tls, cpu, how),
                  self.beside(f"TLS hit in RAM, {size}: CPU beside the best peer", LOWER, 0.50, "best peer", tls, cpu, how)],
            "b": [self.beside(f"plain hit in RAM, {size}: CPU beside nginx with sendfile, files", LOWER, 0.60, "nginx-static", plain, cpu, how),
                  self.beside(f"plain hit in RAM, {size}: CPU beside nginx with sendfile, proxy_cache", LOWER, 0.60, "nginx", plain, cpu, how)],
            "f": [self.within(f"TLS over plain, {size}: CPU", LOWER, 1.5, "plain", tls, plain, cpu, how)],
            "j": [self.within(f"1,024 connections over 16, TLS, {size}: throughput", HIGHER, 0.85, "16 connections",
                              row("hit-ram", size_bytes, 1024, True), tls, rate, f"{size} hits in RAM, GiB/s, pairs in turn")],
        }

    def disk(self, size, size_bytes):
        targets = []
        for tls in (False, True):
            wire = "TLS" if tls else "plain"
            targets.append(self.beside(f"disk-resident hit, {wire}, {size}: throughput beside the best peer", HIGHER, 1.3, "best peer",
                                       row("hit-disk", size_bytes, 16, tls), rate,
                                       f"{size} hits, data of 6 × the memory limit, 16 connections, GiB/s, pairs in turn"))
        return {"c": targets}

    def ranges(self, size_bytes, range_bytes):
        targets = []
        for tls in (True, False):
            wire = "TLS" if tls else "plain"
            its_row = row("hit-ram", size_bytes, 64, tls, range_bytes)
            how = "64 KiB ranges of 1 MiB objects in RAM, 64 connections, pairs in turn"
            targets.append(self.beside(f"64 KiB ranges, {wire}: requests for each second of server CPU", HIGHER, 1.0, "best peer", its_row,
                                       requests_per_cpu, how))
            targets.append(self.beside(f"64 KiB ranges, {wire}: requests a second on one core", HIGHER, 1.0, "best peer", its_row,
                                       requests, how))
        return {"d": targets}
