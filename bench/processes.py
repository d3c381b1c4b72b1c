"""The programs that `bench/memory`, `bench/restart` and `bench/writeback` run, and what the kernel says of them.

Owns starting and ending them: each process is ended by whoever started it, by its id, whatever happens. Measures nothing.
"""

import json
import os
import pathlib
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
OPERATOR_TOKEN = "bench-operator-token"
TOKEN = "bench-token-bench-token"
START_SECONDS_MAX = 120
STOP_SECONDS_MAX = 60
MIB = 1 << 20

# Certificates are made by the proxy itself and last for one run: nothing is learned from checking them.
UNCHECKED = ssl.create_default_context()
UNCHECKED.check_hostname = False
UNCHECKED.verify_mode = ssl.CERT_NONE


class ProcessDied(Exception):
    """What was measured is no more."""


def build(*what):
    """Builds with the profile `quick` and returns the folder of the binaries."""
    command = ["cargo", "build", "--quiet", "--profile", "quick", *what]
    subprocess.run(command, cwd=ROOT, check=True)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    return target / "quick"


def free_port():
    """A port that nothing listens on at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def stop(process):
    """Ends a process that this program started."""
    if process and process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def memory_of(pid):
    """Bytes resident now and at most, as the kernel counts them."""
    fields = {}
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "VmHWM"):
            fields[name] = int(value.split()[0]) * 1024
    if "VmRSS" not in fields:
        raise ProcessDied(f"process {pid} has ended by itself")
    return fields["VmRSS"], fields["VmHWM"]


def private_of(pid):
    """Bytes that only this process holds: without the pages of the binary that the page cache would hold anyway."""
    kilobytes = 0
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean:", "Private_Dirty:")):
            kilobytes += int(line.split()[1])
    return kilobytes * 1024


class Stub:
    """The S3 stub, with synthetic objects."""

    def __init__(self, binaries, threads=1):
        command = [binaries / "forebay-s3-stub", "--listen", "127.0.0.1:0", "--access-key", "bench", "--secret-key",
                   "bench-secret", "--bucket", "bench", "--synthetic", "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the S3 stub did not start; see above")
        self.url = line.split()[-1]

    def stop(self):
        stop(self.process)


class Proxy:
    """A proxy with its folders and settings, started and ended any number of times."""

    def __init__(self, binary, folder, volumes, store_url="http://127.0.0.1:9", flags=(), tls=True, cpu=None):
        self.binary, self.folder, self.flags, self.tls = binary, pathlib.Path(folder), list(flags), tls
        self.cpu = cpu
        self.port, self.process = free_port(), None
        for name in ("cache", "ledger", "home"):
            (self.folder / name).mkdir(mode=0o700, exist_ok=True)
        text = f'[operator]\ntoken = "{OPERATOR_TOKEN}"\n'
        for name, lines in volumes.items():
            # What is measured here is reading, unless a volume says otherwise.
            writeback = "" if "writeback =" in lines else "writeback = false\n"
            text += (
                f'\n[[volume]]\nname = "{name}"\nstore = "s3"\nendpoint = "{store_url}"\nregion = "us-east-1"\n'
                f'bucket = "bench"\n{writeback}{lines}\n'
                f'[[volume.key]]\ntoken = "{TOKEN}"\npermission = "rw"\n'
            )
        self.config = self.folder / "forebay.toml"
        self.config.write_text(text)
        self.config.chmod(0o600)

    def url(self, path):
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}{path}"

    def start(self):
        """Starts it and returns at once. What it logs goes to `forebay.log` in its folder."""
        tls = ["--sslCert", self.folder / "cert.pem", "--sslKey", self.folder / "key.pem"] if self.tls else ["--noSSL"]
        command = [self.binary, "start", "--bindAddr", f"127.0.0.1:{self.port}", "--config", self.config,
                   "--diskFolder", self.folder / "cache", "--dbFolder", self.folder / "ledger", "--blockUser", "bench",
                   "--blockPass", "bench-secret", *tls, *self.flags]
        if self.cpu is not None:
            command = ["taskset", "-c", str(self.cpu), *command]
        environment = {**os.environ, "HOME": str(self.folder / "home"), "RUST_LOG": "info"}
        with open(self.folder / "forebay.log", "a") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, env=environment)

    def wait_until_ready(self):
        """Waits until it listens on every core; returns when that was."""
        end = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                self.ask("/-/readyz")
                return time.monotonic()
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.005)
        raise SystemExit(f"the proxy did not start:\n{self.last_words()}")

    def last_words(self):
        """How its log ends."""
        return "\n".join((self.folder / "forebay.log").read_text().splitlines()[-20:])

    def ask(self, path):
        request = urllib.request.Request(self.url(path), headers={"Authorization": f"Bearer {OPERATOR_TOKEN}"})
        with urllib.request.urlopen(request, timeout=10, context=UNCHECKED if self.tls else None) as answer:
            return answer.read()

    def status(self):
        return json.loads(self.ask("/-/status"))

    def kill(self):
        """As a crash would."""
        if self.process:
            self.process.kill()
            self.process.wait()

    def stop(self):
        stop(self.process)
