"""What every system that is measured has in common, and the two that are always there: Forebay and nginx.

A system knows how it is started for a working set, under which address it serves an object, and what it cannot do.
"""

import dataclasses
import pathlib
import shutil
import subprocess

from processes import OPERATOR_TOKEN, TOKEN, free_port

from . import plan
from .lab import BUCKET, Failed

UPLOADS_HELD_MS = 600_000
PEERS = pathlib.Path(__file__).resolve().parent.parent / "peers"


class System:
    """Started for one working set at a time. `name` stands in records."""

    name = ""
    # Whether what is cached on disk is there after a new start.
    keeps_disk = False
    # Whether one process serves TLS and plain at once.
    serves_both = True

    def __init__(self, lab):
        self.lab = lab
        self.servers, self.group, self.folder = [], None, None
        # What of the working set was read since the start; see rounds.
        self.warmed = set()

    def cannot(self, cell):
        """Why it has no such cell, or None."""
        return "it takes no writes" if cell.workload == "put" else None

    def sets(self, cells):
        """How often it reads a working set before these cells: once for each cache that it has of it."""
        return 1

    def version(self):
        raise NotImplementedError

    # What was set and why, in one paragraph; and what was tried.
    settings, notes = "", ()

    def start(self, group, tls):
        """`tls`: the set of what is asked for, {True}, {False} or both."""
        self.group = group
        self.folder = self.lab.folder / self.name
        self.folder.mkdir(exist_ok=True)
        self._start(group, tls)

    def _start(self, group, tls):
        raise NotImplementedError

    def run(self, command, **more):
        server = self.lab.start(self.name, command, limited=self.name, **more)
        self.servers.append(server)
        return server

    def pause(self, paused):
        for server in self.servers:
            server.pause(paused)

    def stop(self):
        for server in reversed(self.servers):
            self.lab.stop(server)
        self.servers, self.warmed = [], set()
        self.lab.drop_limit(self.name)

    def clear(self):
        """Forgets everything that is cached."""
        self.stop()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def target(self, cell):
        """URL that keys are appended to."""
        raise NotImplementedError

    def words(self, cell):
        """Of the generator, for what is asked of this system alone."""
        return ["--range", "64KiB"] if cell.ranged else []

    def warm_words(self, cell):
        """The same, for reading everything that the cell needs once."""
        return self.words(dataclasses.replace(cell, ranged=False))

    def servers_of(self, tls):
        return self.servers

    def fill(self, template, **values):
        """A configuration from its template in bench/peers."""
        text = (PEERS / template).read_text()
        for name, value in {"FOLDER": self.folder, "WORK": self.lab.folder, "STORE": f"127.0.0.1:{self.lab.store_port}", **values}.items():
            text = text.replace(f"@{name}@", str(value))
        path = self.folder / pathlib.Path(template).name.removesuffix(".in")
        path.write_text(text)
        return path


def first_line(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "unknown"


class Forebay(System):
    """One process for TLS and one for plain, since it serves one of them; each has its own cache, but on disk, where one follows the other."""

    name = "forebay"
    keeps_disk = True
    serves_both = False
    settings = (f"--shards 1, --memCapacity {plan.RAM_TIER_BYTES // plan.MIB}M, blocks of the objects' size, consistency immutable, "
                "bearer token checked on each request; from disk with O_DIRECT, each 64 KiB checked against its CRC32C.")

    def __init__(self, lab, name=None, memory=plan.RAM_TIER_BYTES, shards=1, cpu=None, limited=True):
        super().__init__(lab)
        self.name = name or self.name
        self.memory, self.shards, self.cpu = memory, shards, cpu
        self.limited = limited
        self.by_tls = {}

    def version(self):
        return first_line(self.lab.forebay, "version")

    def cannot(self, cell):
        return None

    def _start(self, group, tls):
        for flavour in sorted(tls, reverse=True):
            self._start_one(group, flavour)

    def _start_one(self, group, tls):
        # From disk, the cache that was filled over TLS serves plain as well: one follows the other.
        home = self.folder / ("both" if group.workload == "hit-disk" else "tls" if tls else "plain")
        for name in ("cache", "ledger", "home"):
            (home / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        writes = group.workload == "put"
        config = home / "forebay.toml"
        config.write_text(
            f'[operator]\ntoken = "{OPERATOR_TOKEN}"\n\n[[volume]]\nname = "{BUCKET}"\nstore = "s3"\n'
            f'endpoint = "http://127.0.0.1:{self.lab.store_port}"\nregion = "us-east-1"\nbucket = "{BUCKET}"\nblock_size = "{group.size}"\n'
            f'consistency = "{"revalidate" if writes else "immutable"}"\nwriteback = {"true" if writes else "false"}\n'
            f'\n[[volume.key]]\ntoken = "{TOKEN}"\npermission = "rw"\n')
        config.chmod(0o600)
        port = free_port()
        scheme = "https" if tls else "http"
        secure = ["--sslCert", self.lab.folder / "cert.pem", "--sslKey", self.lab.folder / "key.pem"] if tls else ["--noSSL"]
        # Uploads wait far longer than any run takes: what is measured is the acknowledgement.
        held = ["--writebackDelay", UPLOADS_HELD_MS] if writes else []
        command = [self.lab.forebay, "start", "--bindAddr", f"127.0.0.1:{port}", "--shards", self.shards, "--config", config,
                   "--diskFolder", home / "cache", "--dbFolder", home / "ledger", "--dbMemCapacity", "16M", "--diskQuota",
                   f"{plan.DISK_QUOTA_BYTES // plan.MIB}M", "--memCapacity", f"{self.memory // plan.MIB}M" if self.memory else "0",
                   "--blockUser", "bench", "--blockPass", "bench-secret", *secure, *held]
        more = {} if self.cpu is None else {"cpu": self.cpu}
        # Each has the whole limit: only one of them is asked at a time.
        limit = f"{self.name}-{scheme}"
        server = self.lab.start(self.name, command, limited=limit if self.limited else None, environment={"HOME": str(home / "home")}, **more)
        self.servers.append(server)
        self.by_tls[tls] = (server, f"{scheme}://127.0.0.1:{port}/{BUCKET}/")
        self.lab.wait_for_url(server, f"{scheme}://127.0.0.1:{port}/-/readyz")

    def stop(self):
        super().stop()
        self.by_tls = {}
        for scheme in ("https", "http"):
            self.lab.drop_limit(f"{self.name}-{scheme}")

    def target(self, cell):
        return self.by_tls[cell.tls][1]

    def servers_of(self, tls):
        return [self.by_tls[tls][0]]

    def words(self, cell):
        return ["--header", f"Authorization: Bearer {TOKEN}", *super().words(cell)]


class Nginx(System):
    """What nginx is as a cache: proxy_cache."""

    name = "nginx"
    keeps_disk = True
    template = "nginx/cache.conf.in"
    # The part of the configuration that is asked.
    prefix = ""
    settings = ("proxy_cache in front of the same store, one worker, sendfile, access log off, open_file_cache; objects as a whole, ranges cut "
                "from them (slice is nginx-slice); thread pool for reads only where data is on disk; TLS records of 16 KiB.")

    def version(self):
        return first_line("nginx", "-v").rpartition("/")[2]

    def _start(self, group, tls):
        self.plain_port, self.tls_port = free_port(), free_port()
        for name in ("cache", "temp"):
            (self.folder / name).mkdir(exist_ok=True)
        config = self.fill(self.template, PLAIN_PORT=self.plain_port, TLS_PORT=self.tls_port, QUOTA=f"{plan.DISK_QUOTA_BYTES // plan.MIB}m",
                           AIO="threads" if group.workload == "hit-disk" else "off")
        server = self.run(["nginx", "-e", self.folder / "error.log", "-p", self.folder, "-c", config])
        # It reads the cache folder a minute after the start, and ends.
        server.passing = "cache loader"
        self.lab.wait_for_url(server, f"http://127.0.0.1:{self.plain_port}/ready")

    def target(self, cell):
        where = f"https://127.0.0.1:{self.tls_port}" if cell.tls else f"http://127.0.0.1:{self.plain_port}"
        return f"{where}/{self.prefix}{BUCKET}/"


class NginxSlice(Nginx):
    """nginx as a cache of parts of objects, which large ones need. Of 1 MiB in slices of 1 MiB it is the same, and costs a subrequest."""

    name = "nginx-slice"
    prefix = "slice/"
    settings = "as nginx, with slice of 1 MiB: what it costs to cache large objects part by part; for ranges only."

    def cannot(self, cell):
        return super().cannot(cell) or (None if cell.ranged else "for ranges; whole objects are nginx's")


class NginxStatic(Nginx):
    """nginx without its cache: files served from the page cache. The strongest that it has, and no cache of a store."""

    name = "nginx-static"
    template = "nginx/static.conf.in"
    settings = "static files from the page cache, one worker, sendfile for plain, open_file_cache, TLS records of 16 KiB: no cache, a bound."

    def cannot(self, cell):
        if cell.workload != "hit-ram":
            return "serves files: it is the bound for hits in RAM, not a cache"
        return None

    def _start(self, group, tls):
        files = self.folder / "files"
        folder = files / BUCKET / "synthetic" / group.size
        if not folder.exists():
            folder.mkdir(parents=True)
            url = f"{self.lab.store_url()}synthetic/{group.size}/[0-{group.keys() - 1}]"
            done = subprocess.run(["curl", "-sf", url, "-o", f"{folder}/#1"])
            if done.returncode != 0:
                raise Failed(f"the files could not be made: curl ended with {done.returncode}")
            # Written by this program, they would be charged to nobody: nginx reads them anew, under its own limit.
            self.lab.drop_page_cache()
        super()._start(group, tls)
