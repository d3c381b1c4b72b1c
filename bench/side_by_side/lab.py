"""The place in which systems are measured: CPUs, memory limits, processes, the store, files, the generator.

Owns every process and folder that a measurement needs, and ends and removes them whatever happens. Judges nothing.
"""

import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

from processes import free_port

from . import left, plan

SERVER_CPU, GENERATOR_CPU = 0, 1
READY_SECONDS_MAX = 30
STOP_SECONDS_MAX = 20
# Above what any run takes, so that one that hangs is ended.
RUN_SECONDS_SPARE = 30
SETTLE_SECONDS_MAX, SETTLE_STEP_SECONDS = 8.0, 0.3
BUCKET = "bench"
LIMIT_FILES = ("memory.limit_in_bytes", "memory.max")


class Failed(Exception):
    """A cell could not be measured; the text says why."""


def children_of(pid):
    """The process and all that came from it."""
    found = [pid]
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in task.read_text().split():
                found += children_of(int(child))
        except OSError:
            pass  # It has ended meanwhile.
    return found


def command_line(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


class Server:
    """A process that was started here, with all its children."""

    def __init__(self, name, process, log):
        self.name, self.process, self.log = name, process, log
        # What stands in the command lines of helpers that end by themselves; they are not watched.
        self.passing = None

    def pids(self):
        """The processes that serve, for as long as it runs."""
        pids = children_of(self.process.pid)
        return [pid for pid in pids if not self.passing or self.passing not in command_line(pid)]

    def check(self):
        if self.process.poll() == -signal.SIGKILL:
            raise Failed(f"{self.name} was killed: it needed more than its memory limit")
        if self.process.poll() is not None:
            raise Failed(f"{self.name} ended with {self.process.returncode}: {self.last_words()}")

    def last_words(self):
        lines = self.log.read_text(errors="replace").splitlines()
        return " / ".join(lines[-3:])[-400:] or "it said nothing"

    def pause(self, paused):
        """What is not measured gets no CPU time at all."""
        for pid in children_of(self.process.pid):
            try:
                os.kill(pid, signal.SIGSTOP if paused else signal.SIGCONT)
            except ProcessLookupError:
                pass  # A helper that has ended meanwhile.

    def cpu_seconds(self):
        """That it and its children have used."""
        ticks = 0
        for pid in self.pids():
            try:
                fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self):
        """The whole session that it was started in, by its id."""
        if self.process.poll() is None:
            self.pause(False)
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


class Lab:
    """One per run of the program."""

    def __init__(self, binaries, forebay, out, work, keep=False):
        self.binaries, self.forebay, self.out, self.keep = binaries, forebay, pathlib.Path(out), keep
        pathlib.Path(work).mkdir(parents=True, exist_ok=True)
        left.clean(work)
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix=left.PREFIX, dir=work))
        self.folder.chmod(0o755)
        self.lock = left.hold(self.folder)
        self.logs = self.out / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.servers, self.notes = [], []
        self.device = self._device()
        self.cgroup = self._cgroup()
        self.run_number = 0
        self._certificate()
        self.store_port = free_port()
        self.store = self.start("store", [binaries / "forebay-s3-stub", "--listen", f"127.0.0.1:{self.store_port}", "--no-auth",
                                          "--bucket", BUCKET, "--synthetic"], cpu=GENERATOR_CPU)
        self.wait_for_url(self.store, f"http://127.0.0.1:{self.store_port}/_stub/stats")
        self.generator_help = self._help()

    def close(self):
        for server in reversed(self.servers):
            server.stop()
        if self.cgroup:
            for folder in [*self.cgroup.iterdir(), self.cgroup]:
                if folder.is_dir():
                    _remove_cgroup(folder)
        self.lock.close()
        if self.keep:
            (self.folder / left.LOCK).unlink()
            print(f"kept {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    # ---- what is there ----

    def _device(self):
        source = subprocess.run(["findmnt", "-no", "SOURCE,FSTYPE", "-T", self.folder], stdout=subprocess.PIPE, text=True).stdout.split()
        if "tmpfs" in source:
            raise SystemExit(f"{self.folder} is on tmpfs, which takes no part in direct I/O: give --work a folder on a disk")
        name = pathlib.Path(source[0]).name if source else ""
        devices = [line.split()[2] for line in pathlib.Path("/proc/diskstats").read_text().splitlines()]
        if name in devices:
            return name
        self.notes.append("no block device was found under the work folder: bytes read from the device are not shown")
        return None

    def _cgroup(self):
        """A folder for memory limits (cgroup v1, else v2), or None, noted, where none can be made."""
        reason = "no controller of memory is mounted"
        for root, limit in zip(left.CGROUP_ROOTS, LIMIT_FILES):
            folder = pathlib.Path(root) / self.folder.name
            try:
                if limit == "memory.max":
                    (pathlib.Path(root) / "cgroup.subtree_control").write_text("+memory")
                folder.mkdir()
                if limit == "memory.max":
                    (folder / "cgroup.subtree_control").write_text("+memory")
                probe = folder / "probe"
                probe.mkdir()
                (probe / limit).write_text(str(plan.MEMORY_BYTES))
                probe.rmdir()
                return folder
            except OSError as error:
                reason = str(error)
                for made in (folder / "probe", folder):
                    if made.is_dir():
                        made.rmdir()
        self.notes.append(f"memory was not limited by the kernel ({reason}): each system keeps its own limits, page cache has none")
        return None

    def _certificate(self):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "7",
                        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext",
                        "basicConstraints=critical,CA:FALSE", "-keyout", self.folder / "key.pem", "-out", self.folder / "cert.pem"],
                       check=True, stderr=subprocess.DEVNULL)
        (self.folder / "key.pem").chmod(0o600)

    def _help(self):
        return {verb: subprocess.run([self.binaries / "forebay-bench", verb, "--help"], stdout=subprocess.PIPE, text=True).stdout
                for verb in ("get", "put")}

    def machine(self):
        """What a reader must know of it. Without its name."""
        cpu = [line.partition(":")[2].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
               if line.startswith("model name")]
        memory = int(pathlib.Path("/proc/meminfo").read_text().split()[1]) * 1024
        disk = "unknown"
        if self.device:
            kind = subprocess.run(["findmnt", "-no", "FSTYPE", "-T", self.folder], stdout=subprocess.PIPE, text=True).stdout.strip()
            disk = f"{self.device}, {kind}"
        return {"cpu": cpu[0] if cpu else platform.machine(), "cores": os.cpu_count(), "kernel": platform.release(),
                "memory_bytes": memory, "disk": disk, "notes": self.notes}

    # ---- processes ----

    def start(self, name, command, cpu=SERVER_CPU, limited=None, environment=None, cwd=None):
        """Starts a program on one CPU; `limited` names the memory limit that it shares with others of the same name."""
        words = ["taskset", "-c", str(cpu), *map(str, command)]
        if limited and self.cgroup:
            words = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self._limit(limited) / "cgroup.procs"), *words]
        log = self.logs / f"{name}.log"
        with open(log, "ab") as file:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=cwd or self.folder,
                                       env={**os.environ, **(environment or {})}, start_new_session=True)
        server = Server(name, process, log)
        self.servers.append(server)
        left.started(self.folder, process.pid)
        return server

    def stop(self, server):
        server.stop()
        self.servers.remove(server)

    def _limit(self, name):
        folder = self.cgroup / name
        if not folder.exists():
            folder.mkdir()
            file = next(folder / limit for limit in LIMIT_FILES if (folder / limit).exists())
            file.write_text(str(plan.MEMORY_BYTES))
        return folder

    def drop_limit(self, name):
        """Forgets a memory limit, and with it the pages that were held under it."""
        if self.cgroup and (self.cgroup / name).exists():
            _remove_cgroup(self.cgroup / name)

    def wait_for_url(self, server, url, headers=None):
        """Until it answers, with whatever: for a while, and only as long as it lives."""
        from processes import UNCHECKED

        end = time.monotonic() + READY_SECONDS_MAX
        request = urllib.request.Request(url, headers=headers or {})
        while time.monotonic() < end:
            server.check()
            try:
                with urllib.request.urlopen(request, timeout=5, context=UNCHECKED if url.startswith("https") else None) as answer:
                    answer.read()
                    return
            except OSError as error:
                last = error
                time.sleep(0.05)
        raise Failed(f"{server.name} was not ready within {READY_SECONDS_MAX} s: {last}; {server.last_words()}")

    @staticmethod
    def let_settle(servers):
        """Waits until servers are done with what they were asked for, or `SETTLE_SECONDS_MAX` have passed: requests whose client has
        gone are worked off all the same by some, and must not fall into the next run's window."""
        until = time.monotonic() + SETTLE_SECONDS_MAX
        used = sum(server.cpu_seconds() for server in servers)
        while time.monotonic() < until:
            time.sleep(SETTLE_STEP_SECONDS)
            before, used = used, sum(server.cpu_seconds() for server in servers)
            if used - before < SETTLE_STEP_SECONDS / 10:
                return

    def drop_page_cache(self):
        subprocess.run(["sync"], check=True)
        try:
            pathlib.Path("/proc/sys/vm/drop_caches").write_text("1")
        except OSError:
            if not any("page cache" in note for note in self.notes):
                self.notes.append("the page cache could not be dropped (needs root)")

    # ---- the store ----

    def store_stats(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.store_port}/_stub/stats", timeout=30) as answer:
            return json.load(answer)

    def reset_store(self):
        """Forgets what was written and counted; synthetic objects are always there."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.store_port}/_stub/reset", method="POST")
        urllib.request.urlopen(request, timeout=30).close()

    def remove_store(self, first_byte_ms, bytes_per_s):
        """From now to the next reset the store is as far off as a bucket: each GET waits, then trickles at the rate of one stream."""
        actions = [{"kind": "delay_head", "ms": first_byte_ms}, {"kind": "rate_limit", "bytes_per_s": bytes_per_s}]
        body = json.dumps({"method": "GET", "actions": actions}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.store_port}/_stub/faults", method="POST", data=body)
        urllib.request.urlopen(request, timeout=30).close()

    def store_gets(self):
        return sum(count for name, count in self.store_stats()["requests"].items() if name.startswith("GET "))

    def store_url(self):
        return f"http://127.0.0.1:{self.store_port}/{BUCKET}/"

    # ---- the generator ----

    def generate(self, verb, target, *words, servers=(), seconds=None, device=True, complete=True):
        """One run of the generator; its report. Raises `Failed` for one that measured nothing or wrong bytes, or where it must be
        `complete`, missed some of an exact number."""
        command = [self.binaries / "forebay-bench", verb, "--target", target, "--json", "--ca", self.folder / "cert.pem"]
        command += ["--tls13-aes128"] if target.startswith("https") else []
        command += [] if "--pin" in words else ["--pin", GENERATOR_CPU]
        pids = [pid for server in servers for pid in server.pids()]
        command += ["--server-pid", ",".join(map(str, pids))] if pids else []
        command += ["--device", self.device] if device and self.device else []
        command += ["--seconds", seconds] if seconds is not None else []
        command += words
        try:
            done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                  timeout=(seconds or 60) + RUN_SECONDS_SPARE)
        except subprocess.TimeoutExpired:
            raise Failed("the run did not end in time") from None
        for server in servers:
            server.check()
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        report = json.loads(lines[-1]) if lines else None
        if report is None:
            raise Failed(f"the generator failed: {(done.stderr or done.stdout).strip()[-300:]}")
        if (done.returncode != 0 and complete) or report["requests"] == 0 or report["wrong_content"]:
            raise Failed(f"no right samples: {report['requests']} answers, errors {report['errors']}")
        return report

    def fresh_prefix(self):
        """For keys that nobody has asked for in this run of the program or another."""
        self.run_number += 1
        return f"m{time.time_ns() // 1_000_000:x}-{self.run_number}"


def _remove_cgroup(folder):
    if not left.remove_cgroup(folder):
        print(f"could not remove {folder}", file=sys.stderr)
