"""Start, kill and restart one forebay process from Python, with folders that outlive it.

Standard library only. It owns process, settings file and folders; it sends no data requests.
"""

import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.request

VOLUME = "vol"
TOKEN = "token-read-write-0123456789abcdef"
OPERATOR_TOKEN = "token-operator-0123456789abcdef"
READY_SECONDS_MAX = 60


class Store:
    """An S3 server and a prefix of our own in its bucket, as scripts/stores names them."""

    def __init__(self, name):
        read = lambda part: os.environ[f"FOREBAY_TEST_S3_{name}_{part}"]
        self.endpoint, self.region = read("ENDPOINT"), read("REGION")
        self.key, self.secret = read("KEY"), read("SECRET")
        self.bucket, self.prefix = "forebay-test", f"python-{time.time_ns()}-{os.getpid()}"

    def settings(self):
        return (
            f'store = "s3"\nendpoint = "{self.endpoint}"\nregion = "{self.region}"\n'
            f'bucket = "{self.bucket}"\nprefix = "{self.prefix}"\n'
        )


class Proxy:
    """One proxy on loopback over TLS, or over plain HTTP."""

    def __init__(self, binary, store=None, shards=1, disk_quota="512M", block_size="4MiB", tls=True,
                 writeback=True):
        self.binary, self.store, self.shards = binary, store, shards
        self.disk_quota, self.tls, self.process = disk_quota, tls, None
        self.folder = tempfile.mkdtemp(prefix="forebay-python-")
        for name in ("cache", "ledger", "objects"):
            os.mkdir(self.path(name), 0o700)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        settings = store.settings() if store else f'store = "file"\npath = "{self.path("objects")}"\n'
        descriptor = os.open(self.path("forebay.toml"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(
                f'[operator]\ntoken = "{OPERATOR_TOKEN}"\n\n[[volume]]\nname = "{VOLUME}"\n{settings}'
                f'block_size = "{block_size}"\nttl = "3600s"\nwriteback = {str(writeback).lower()}\n\n[[volume.key]]\ntoken = "{TOKEN}"\npermission = "rw"\n'
            )

    def path(self, name):
        return os.path.join(self.folder, name)

    @property
    def url(self):
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def certificate(self):
        return self.path("cert.pem")

    def tls_context(self):
        """Trusts the certificate that this proxy made and nothing else."""
        return ssl.create_default_context(cafile=self.certificate) if self.tls else None

    def command(self):
        words = [self.binary, "start", "--config", self.path("forebay.toml"), "--bindAddr", f"127.0.0.1:{self.port}"]
        words += ["--diskFolder", self.path("cache"), "--dbFolder", self.path("ledger")]
        words += ["--shards", str(self.shards), "--diskQuota", self.disk_quota]
        if self.tls:
            words += ["--sslCert", self.certificate, "--sslKey", self.path("key.pem")]
        else:
            words.append("--noSSL")
        if self.store:
            words += ["--blockUser", self.store.key, "--blockPass", self.store.secret]
        return words

    def give_keys(self, pairs):
        """Lets pairs, each with its permission, into the volume that the settings name last; before a start."""
        with open(self.path("forebay.toml"), "a") as settings:
            for (access, secret), permission in pairs:
                settings.write(
                    f'\n[[volume.key]]\naccess_key = "{access}"\nsecret_key = "{secret}"\npermission = "{permission}"\n'
                )

    def start(self):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        environment["HOME"] = self.folder
        with open(self.path("log"), "ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=self.folder
            )
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                with open(self.path("log"), errors="replace") as log:
                    raise RuntimeError(f"the proxy did not get ready (exit code {self.process.poll()}):\n{log.read()}")
            time.sleep(0.05)
        return self

    def is_ready(self):
        try:
            with urllib.request.urlopen(f"{self.url}/-/readyz", timeout=5, context=self.tls_context()) as answer:
                return answer.status == 200
        except OSError:  # Not listening yet, no certificate yet, or not ready yet.
            return False

    def kill(self):
        """kill -9; returns once nothing of the process is left."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = None

    def restart(self):
        self.kill()
        self.start()

    def empty_cache(self):
        """Removes every block: all of the cache folder and the ledger. The process must be stopped."""
        assert self.process is None
        for name in ("cache", "ledger"):
            shutil.rmtree(self.path(name))
            os.mkdir(self.path(name), 0o700)

    def close(self):
        if self.process is not None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
