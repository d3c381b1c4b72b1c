"""What must hold of a client's tree: written, read warm, read cold, deleted; also when the proxy is killed half way through.

Owns the situations and their judgement; command lines are in tree_clients.py. A row is a client in a situation, with a
verdict for each of its steps; it never stops at the first failure of another row.
"""

import json
import os
import random
import shutil
import threading
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request
from typing import NamedTuple

import boto3
import botocore.config

from forebay_proxy import OPERATOR_TOKEN, VOLUME, Proxy
from tree_clients import REGION, ClientFailed

PAIR = ("FBMATRIX", "matrix-secret-0123456789abcdef")
STEPS = ("write", "warm", "cold", "delete")
FLUSH_SECONDS_MAX = 300
# Where a client gave up while the proxy was away, it is run again; more often would hide that it does not work.
RUNS_MAX = 2

# Names that need escaping somewhere; no client is asked for more than it can.
ODD_NAMES = ["a.txt", "b c+d.txt", "dir/one", "dir/two", "dir/sub/three & four", "dür/fünf%20", "z~(1)'!.bin"]


class Situation(NamedTuple):
    """What a row is run in."""

    writeback: bool
    killed: bool

    def __str__(self):
        return f"{'written back' if self.writeback else 'written through'}{', killed' if self.killed else ''}"


ALL_SITUATIONS = tuple(Situation(writeback, killed) for writeback in (False, True) for killed in (False, True))


class Wrong(Exception):
    """Something that was acknowledged is not there, or not as it was written."""


class Tree:
    """The files that are carried: some with odd names, many small ones, a large one."""

    def __init__(self, folder, small_files, large_bytes):
        self.folder = folder
        draw = random.Random(20)
        sizes = {name: 1000 * number for number, name in enumerate(ODD_NAMES)}
        sizes |= {f"many/{number:03}": draw.randrange(1, 200_000) for number in range(small_files)}
        sizes["large.bin"] = large_bytes
        # Clients compare times by the second, and an object is never older than its file.
        past = time.time() - 3600
        for name, size in sizes.items():
            path = os.path.join(folder, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(draw.randbytes(size))
            os.utime(path, (past, past))
        self.byte_count = sum(sizes.values())

    def files(self):
        """Each file's bytes, by its name."""
        return files_below(self.folder)


def files_below(folder):
    found = {}
    for directory, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(directory, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, folder)] = file.read()
    return found


def compare(what, found, expected):
    """Raises unless both are the same names with the same bytes."""
    if found == expected:
        return
    lacks, has_more = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    differ = sorted(name for name in expected.keys() & found.keys() if found[name] != expected[name])
    raise Wrong(f"{what}: {len(lacks)} missing {lacks[:3]}, {len(has_more)} too many {has_more[:3]}, {len(differ)} differ {differ[:3]}")


class Row:
    """One client in one situation, with a proxy and folders of its own."""

    def __init__(self, client_class, situation, store, binary, small_files, large_bytes):
        self.situation, self.store = situation, store
        self.proxy = Proxy(binary, store=store, shards=2, block_size="1MiB", tls=client_class.tls, writeback=situation.writeback)
        self.proxy.give_keys([(PAIR, "rw")])
        place = self.proxy.path("client")
        os.mkdir(place)
        self.client = client_class(self.proxy, PAIR, place)
        self.tree = Tree(self.proxy.path("tree"), small_files, large_bytes)
        self.notes = []

    # The proxy as the operator sees it.

    def operator(self, method, path):
        request = urllib.request.Request(f"{self.proxy.url}/-/{path}", method=method)
        request.add_header("Authorization", f"Bearer {OPERATOR_TOKEN}")
        with urllib.request.urlopen(request, timeout=60, context=self.proxy.tls_context()) as answer:
            return answer.read().decode()

    def carried_bytes(self):
        """Bytes of objects that this run of the proxy has received and sent."""
        names = ("forebay_http_received_bytes_total", "forebay_cache_response_bytes_total")
        lines = self.operator("GET", "metrics").splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(names))

    def flush(self):
        deadline = time.monotonic() + FLUSH_SECONDS_MAX
        self.operator("POST", "flush")
        while True:
            backlog = json.loads(self.operator("GET", "status"))["writeback"]
            if backlog["shards_unread"] == 0 and backlog["dirty_blocks"] == 0:
                break
            if time.monotonic() > deadline:
                raise Wrong(f"the backlog does not end: {backlog}")
            time.sleep(0.1)
        if backlog["conflict_blocks"] or backlog["quarantined_blocks"]:
            raise Wrong(f"not uploaded: {backlog}")

    def empty_cache(self):
        self.proxy.kill()
        self.proxy.empty_cache()
        self.proxy.start()

    # Objects as another client sees them, through the proxy and in the store itself.

    def objects(self, through_proxy):
        if through_proxy:
            client = s3_client(self.proxy.url, PAIR, REGION, self.proxy.certificate if self.proxy.tls else None)
            bucket, prefix = VOLUME, ""
        else:
            client = s3_client(self.store.endpoint, (self.store.key, self.store.secret), self.store.region)
            bucket, prefix = self.store.bucket, f"{self.store.prefix}/"
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return {key[len(prefix) :]: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}

    def check_objects(self, through_proxy):
        found = self.objects(through_proxy)
        if self.client.files_are_objects:
            # What a mount keeps for a folder is not a file of the tree.
            found = {key.removeprefix("tree/"): body for key, body in found.items() if not key.endswith("/") and key != "tree"}
            folders = {os.path.dirname(name) for name in self.tree.files()}
            found = {key: body for key, body in found.items() if key not in folders}
            compare("objects through the proxy" if through_proxy else "objects in the store", found, self.tree.files())
        elif not found:
            raise Wrong("no object is there")
        return found

    # The steps.

    def run_killed(self, what, verb):
        """Runs a client's verb; in the situation that says so the proxy is killed half way through, and started again."""
        if not self.situation.killed:
            return verb()
        ended, killed, trouble = threading.Event(), threading.Event(), []

        def kill_half_way():
            try:
                until = self.carried_bytes() + self.tree.byte_count / 2
                while not ended.is_set():
                    if self.carried_bytes() >= until:
                        killed.set()
                        self.proxy.restart()
                        return
                    time.sleep(0.005)
            except Exception as error:  # Told by whoever waits for this thread.
                trouble.append(error)

        thread = threading.Thread(target=kill_half_way)
        thread.start()
        runs = 0
        try:
            while True:
                runs += 1
                try:
                    verb()
                    break
                except ClientFailed:
                    if runs == RUNS_MAX or not killed.is_set():
                        raise
        finally:
            ended.set()
            thread.join()
        if trouble:
            raise Wrong(f"the proxy did not start again: {trouble[0]}")
        if not killed.is_set():
            raise Wrong(f"{what} ended before the proxy could be killed")
        if runs > 1:
            self.notes.append(f"{what} took {runs} runs")

    def write(self):
        self.run_killed("write", lambda: self.client.up(self.tree.folder))
        if self.client.renames:
            self.client.rename("dir/two", "dir/renamed")
            os.rename(os.path.join(self.tree.folder, "dir/two"), os.path.join(self.tree.folder, "dir/renamed"))
        self.check_objects(True)

    def read(self, what, killed):
        target = self.proxy.path(f"read-{what}")
        os.mkdir(target)
        read = lambda: self.client.down(target)
        self.run_killed(what, read) if killed else read()
        expected = {name: body for name, body in self.tree.files().items() if body or self.client.reads_empty}
        compare("what the client read", files_below(target), expected)
        shutil.rmtree(target)

    def warm(self):
        self.read("warm", False)

    def cold(self):
        self.flush()
        through_proxy = self.check_objects(True)
        if self.store:
            compare("the store and the proxy", self.check_objects(False), through_proxy)
        self.empty_cache()
        self.read("cold", True)

    def delete(self):
        self.client.delete()
        if not self.client.files_are_objects:
            return
        self.flush()
        for through_proxy in (True, False) if self.store else (True,):
            left = [key for key, body in self.objects(through_proxy).items() if body or not self.client.makes_folders]
            if left:
                raise Wrong(f"left {'through the proxy' if through_proxy else 'in the store'}: {left[:5]}")

    def run(self):
        """Each step's verdict: `ok`, or what went wrong; after a write that failed nothing else is tried."""
        verdicts = {}
        try:
            self.proxy.start()
            for step in STEPS:
                try:
                    getattr(self, step)()
                    verdicts[step] = "ok"
                except Exception as error:
                    verdicts[step] = f"FAILED: {describe(error)}"
                    if step == "write":
                        break
        finally:
            self.client.close()
            with open(self.proxy.path("log"), errors="replace") as log:
                if any("panicked" in line for line in log):
                    verdicts["delete"] = "FAILED: the proxy panicked"
            self.proxy.close()
        return verdicts


def describe(error):
    if isinstance(error, (ClientFailed, Wrong, RuntimeError)):
        return str(error)
    return "".join(traceback.format_exception_only(type(error), error)).strip()


def s3_client(endpoint, pair, region, certificate=None):
    config = botocore.config.Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 3})
    return boto3.client(
        "s3", endpoint_url=endpoint, region_name=region, aws_access_key_id=pair[0], aws_secret_access_key=pair[1],
        config=config, verify=certificate,
    )
