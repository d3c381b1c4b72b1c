"""One table of cases, run against Forebay and against the store behind it: what both answer must be what S3 answers.

Each case is a test. On every proxy the case's own expectations must hold; the store is asked the same, and where it does not
meet them, or tells other headers than the proxies do, differences.py must say why. Run by scripts/test; without an S3 server only a
proxy in front of a folder is asked.
"""

import fnmatch
import os
import sys
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "python")]

import cases_auth  # noqa: E402
import cases_bodies  # noqa: E402
import cases_buckets  # noqa: E402
import cases_objects  # noqa: E402
import cases_parts  # noqa: E402
from cases_auth import NEIGHBOUR, OTHER_VOLUME, READER, TRAVELLER  # noqa: E402
from differences import DIFFERENCES  # noqa: E402
from forebay_proxy import VOLUME, Proxy, Store  # noqa: E402
from model import Run  # noqa: E402
from wire import Endpoint, Request  # noqa: E402

PAIR = ("FBCONFORM", "conformance-secret-0123456789abcdef")
BUCKET = "forebay-conformance"
MODULES = (cases_objects, cases_bodies, cases_buckets, cases_auth, cases_parts)


def add_volume(proxy):
    """Another volume, in a folder, with a pair of its own."""
    os.mkdir(proxy.path("other"), 0o700)
    with open(proxy.path("forebay.toml"), "a") as settings:
        settings.write(f'\n[[volume]]\nname = "{OTHER_VOLUME}"\nstore = "file"\npath = "{proxy.path("other")}"\n')
    proxy.give_keys([(NEIGHBOUR, "rw"), (TRAVELLER, "rw")])


class LateProxy(Proxy):
    """Acknowledges writes and uploads nothing while the suite runs."""

    def command(self):
        return [*super().command(), "--writebackDelay", "3600000"]


def all_cases():
    return [case for module in MODULES for table in module.TABLES for case in table()]


CASES = all_cases()


class Conformance(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.targets, cls.store, cls.fixtures = {}, None, {}
        cls.run_id = f"{time.time_ns() // 1000 % 10**10:x}"
        has_store = "FOREBAY_TEST_S3_RGW_ENDPOINT" in os.environ
        cls.start("folder", Proxy, None, True)
        if has_store:
            cls.start("written back", LateProxy, Store("RGW"), True)
            cls.start("written through", Proxy, Store("RGW"), False)
            store = Store("RGW")
            cls.store = Endpoint("store", store.endpoint, BUCKET, (store.key, store.secret), store.region)
            made = cls.store.send(Request("PUT"))
            assert made.status in (200, 409), made
        cls.pool = ThreadPoolExecutor(len(cls.targets) + 1)
        cls.addClassCleanup(cls.pool.shutdown)

    @classmethod
    def start(cls, name, kind, store, writeback):
        proxy = kind(os.environ["FOREBAY_TEST_BINARY"], store=store, shards=1, block_size="1MiB", tls=False, writeback=writeback)
        cls.addClassCleanup(proxy.close)
        proxy.give_keys([(PAIR, "rw"), (READER, "r"), (TRAVELLER, "rw")])
        add_volume(proxy)
        proxy.start()
        cls.targets[name] = Endpoint(name, proxy.url, VOLUME, PAIR)
        cls.targets[name].is_ours = True

    def run_case(self, number, case, endpoint):
        """What is wrong, and what was seen in each step."""
        is_shared = bool(case.fixture)
        prefix = f"t{self.run_id}-{'f%d' % shared_number(case.fixture) if is_shared else number}-"
        run = Run(endpoint, prefix)
        problems, seen = [], []
        if is_shared and (endpoint.name, prefix) not in self.fixtures:
            self.fixtures[endpoint.name, prefix] = [run.step(step)[0] for step in case.fixture]
        for step in case.steps:
            found, what = run.step(step)
            problems += [f"{step.request.method} {describe(step.request)}: {problem}" for problem in found]
            seen.append(what)
        return problems, seen

    def check(self, number, case):
        endpoints = [one for name, one in self.targets.items() if case.folder or name != "folder"]
        if not endpoints:
            self.skipTest("there is no S3 server to be behind")
        if self.store and case.differential:
            endpoints.append(self.store)
        results = dict(zip((one.name for one in endpoints), self.pool.map(lambda one: self.run_case(number, case, one), endpoints)))
        store = results.pop("store", None)
        if store and case.as_store:
            outcomes = lambda seen: [(one["status"], one.get("code")) for one in seen]
            same = lambda name, seen: name != "folder" and outcomes(seen) == outcomes(store[1])
            results = {name: ([] if same(name, seen) else problems, seen) for name, (problems, seen) in results.items()}
        wrong = [f"{name}: {problem}" for name, (problems, _) in results.items() for problem in problems]
        if store:
            wrong += self.compare(case, store, results)
        self.assertFalse(wrong, "\n" + "\n".join(wrong))

    def compare(self, case, store, results):
        problems, seen = store
        differing = [f"the store: {problem}" for problem in problems]
        for name, (_, other) in results.items():
            if name == "folder":
                continue  # It has its own rules of ETags; what a case wants of it was checked.
            for place, (theirs, ours) in enumerate(zip(seen, other)):
                for fact in sorted(theirs.keys() | ours.keys()):
                    if theirs.get(fact) != ours.get(fact):
                        differing.append(f"step {place}: {fact}: the store {theirs.get(fact)!r}, {name} {ours.get(fact)!r}")
        explained = [pattern for pattern in DIFFERENCES if fnmatch.fnmatchcase(case.name, pattern)]
        if differing and not explained:
            return ["differs from the store without an entry in differences.py", *differing]
        return []


SHARED = {}


def shared_number(fixture):
    return SHARED.setdefault(repr(fixture), len(SHARED))


def describe(request):
    return f"{request.raw_path or request.key or 'bucket'} {dict(request.headers) or ''}{list(request.query) or ''}"[:160]


def make_test(number, case):
    def test(self):
        self.check(number, case)

    test.__doc__ = case.name
    return test


class Table(unittest.TestCase):
    def test_names_are_unique_and_differences_name_cases(self):
        names = [case.name for case in CASES]
        self.assertEqual(sorted({name for name in names if names.count(name) > 1}), [])
        self.assertEqual([pattern for pattern in DIFFERENCES if not fnmatch.filter(names, pattern)], [])


for number, case in enumerate(CASES):
    setattr(Conformance, f"test_{number:04}_{case.name.replace('/', '_').replace('-', '_')}", make_test(number, case))


if __name__ == "__main__":
    unittest.main()
