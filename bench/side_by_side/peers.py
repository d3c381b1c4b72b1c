"""The peers but nginx: Traffic Server, Varnish with hitch, cachey, and for writes rclone. How each is started at its best, and what it cannot do."""

import os
import pathlib
import pwd
import shutil
import subprocess

from processes import free_port

from . import install, left, plan
from .lab import BUCKET
from .systems import System, first_line

# Of the memory limit, for caches in a process of their own that need little besides; the rest is for threads and requests in flight.
OWN_RAM_BYTES = 512 * plan.MIB
ATS_RAM_BYTES = 400 * plan.MIB
# A fourth of the smallest fragment: the directory has room to spare, and takes a megabyte.
ATS_ENTRY_BYTES = 64 * plan.KIB
CACHEY_RAM_BYTES = 320 * plan.MIB
CACHEY_DOWNLOAD_BYTES = 128 * plan.MIB
HELD_SECONDS = 600
# Far above what a download takes while its disk is filled: by default it gives up after 5 s with a 503.
DOWNLOAD_MS_MAX = 60_000


def local(port, tls):
    return f"{'https' if tls else 'http'}://127.0.0.1:{port}/"


class TrafficServer(System):
    name = "ats"
    keeps_disk = True
    settings = (f"one exec thread, RAM cache of {ATS_RAM_BYTES // plan.MIB} MiB for objects up to 16 MiB, one file as its disk, "
                "read_while_writer, no log. Debian has no slice plugin: an object of the store is one of its own; a range that misses passes through uncached.")

    def version(self):
        words = first_line("traffic_server", "-V").split()
        return words[2] if len(words) > 2 else "unknown"

    def _start(self, group, tls):
        self.plain_port, self.tls_port = free_port(), free_port()
        folders = {name: self.folder / name for name in ("etc", "state", "run", "log", "cache")}
        for folder in folders.values():
            folder.mkdir(exist_ok=True)
        etc = folders["etc"]
        for path in pathlib.Path("/etc/trafficserver").iterdir():
            if path.is_file():
                shutil.copy(path, etc)
        user = "trafficserver" if os.getuid() == 0 else "#-1"
        config = self.fill("ats/records.config.in", PLAIN_PORT=self.plain_port, TLS_PORT=self.tls_port, RAM=ATS_RAM_BYTES, USER=user,
                           OBJECT_BYTES=ATS_ENTRY_BYTES)
        config.replace(etc / "records.config")
        store = f"http://127.0.0.1:{self.lab.store_port}/"
        (etc / "remap.config").write_text(f"map {local(self.plain_port, False)} {store}\nmap {local(self.tls_port, True)} {store}\n")
        (etc / "storage.config").write_text(f"{folders['cache']} {plan.DISK_QUOTA_BYTES // plan.MIB}M\n")
        (etc / "cache.config").write_text("url_regex=.* ttl-in-cache=7d\n")
        (etc / "ssl_multicert.config").write_text("dest_ip=* ssl_cert_name=cert.pem ssl_key_name=key.pem\n")
        for name in ("cert.pem", "key.pem"):
            shutil.copy(self.lab.folder / name, etc)
        paths = {"prefix": "/usr", "exec_prefix": "/usr", "bindir": "/usr/bin", "sbindir": "/usr/bin", "sysconfdir": etc, "datadir": "/usr/share",
                 "includedir": "/usr/include", "libdir": "/usr/lib", "libexecdir": "/usr/lib/trafficserver/modules",
                 "localstatedir": folders["state"], "runtimedir": folders["run"], "logdir": folders["log"], "cachedir": folders["cache"]}
        (self.folder / "runroot.yaml").write_text("".join(f"{name}: {path}\n" for name, path in paths.items()))
        if os.getuid() == 0:
            subprocess.run(["chown", "-R", f"{user}:", self.folder], check=True)
        server = self.run(["traffic_server", f"--run-root={self.folder / 'runroot.yaml'}"], environment={"TS_RUNROOT": str(self.folder)})
        # An object that is no cell's; it answers when the cache is there.
        self.lab.wait_for_url(server, f"{local(self.plain_port, False)}{BUCKET}/synthetic/1KiB/ready")

    def target(self, cell):
        return f"{local(self.tls_port if cell.tls else self.plain_port, cell.tls)}{BUCKET}/"


class Varnish(System):
    name = "varnish"
    settings = (f"-s malloc,{OWN_RAM_BYTES // plan.MIB}M, for what is larger -s file (memory-mapped, lost with the process); one thread pool; hitch before it for "
                "TLS over a UNIX socket, on the same CPU and in the same memory limit. It fetches whole objects only.")

    def version(self):
        hitch = first_line("hitch", "-V")
        return f"{first_line('varnishd', '-V').split('(')[1].split()[0].removeprefix('varnish-')}, {hitch}"

    def _start(self, group, tls):
        self.plain_port, self.tls_port = free_port(), free_port()
        program = self.fill("varnish/cache.vcl.in", STORE_HOST="127.0.0.1", STORE_PORT=self.lab.store_port)
        large = group.workload == "hit-disk"
        storage = f"file,{self.folder}/store,{plan.DISK_QUOTA_BYTES // plan.MIB}M,4k,random" if large else f"malloc,{OWN_RAM_BYTES // plan.MIB}M"
        socket = self.folder / "socket"
        parameters = {"thread_pools": 1, "thread_pool_min": 200, "thread_pool_max": 2500, "nuke_limit": 1000, "cli_timeout": 3600, "timeout_idle": 300}
        words = ["varnishd", "-F", "-n", self.folder / "home", "-j", "none", "-T", "none", "-a", f"127.0.0.1:{self.plain_port}", "-a", f"{socket},PROXY", "-f",
                 program, "-s", storage]
        for name, value in parameters.items():
            words += ["-p", f"{name}={value}"]
        server = self.run(words)
        self.lab.wait_for_url(server, f"{local(self.plain_port, False)}ready")
        both = self.folder / "both.pem"
        both.write_text((self.lab.folder / "key.pem").read_text() + (self.lab.folder / "cert.pem").read_text())
        both.chmod(0o600)
        user = ["--user=root"] if os.getuid() == 0 else []
        server = self.run(["hitch", f"--frontend=[127.0.0.1]:{self.tls_port}", f"--backend={socket}", "--write-proxy-v2=on", "--workers=1", "--backlog=4096",
                           "--tls-protos=TLSv1.3", *user, both])
        self.lab.wait_for_url(server, f"{local(self.tls_port, True)}ready")

    def servers_of(self, tls):
        return self.servers if tls else self.servers[:1]

    def target(self, cell):
        return f"{local(self.tls_port if cell.tls else self.plain_port, cell.tls)}{BUCKET}/"


class Cachey(System):
    name = "cachey"
    serves_both = False
    settings = (f"--memory {CACHEY_RAM_BYTES // plan.MIB}MiB, --disk-kind block, thread pool for the disk (its io_uring engine spins), no hedging, one worker; "
                "C0-Exact for misses; its own API without authentication.")

    def __init__(self, lab):
        super().__init__(lab)
        self.ports, self.fenced = {}, []

    def sets(self, cells):
        # What it keeps on disk it does not find again after a start, and it serves either TLS or plain.
        return len({cell.tls for cell in cells})

    def version(self):
        return install.CACHEY_VERSION

    def _start(self, group, tls):
        for flavour in sorted(tls, reverse=True):
            self._start_one(group, flavour)

    def _start_one(self, group, tls):
        port = free_port()
        self._fence(port)
        disk = self.folder / f"disk-{'tls' if tls else 'plain'}"
        disk.unlink(missing_ok=True)
        quota = plan.DISK_QUOTA_BYTES if group.workload != "hit-ram" else plan.GIB
        with open(disk, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, quota)
        secure = ["--tls-cert", self.lab.folder / "cert.pem", "--tls-key", self.lab.folder / "key.pem"] if tls else []
        command = [install.cachey(), "--port", port, "--memory", f"{CACHEY_RAM_BYTES // plan.MIB}MiB", "--max-download-memory",
                   f"{CACHEY_DOWNLOAD_BYTES // plan.MIB}MiB", "--disk-kind", "block", "--disk-path", disk, "--disk-capacity", f"{quota // plan.MIB}MiB",
                   "--hedge-budget-percent", "0", "--bucket-timeout-ms", DOWNLOAD_MS_MAX, "--download-timeout-ms", DOWNLOAD_MS_MAX, *secure]
        environment = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench-secret", "AWS_REGION": "us-east-1", "RUST_LOG": "warn",
                       "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self.lab.store_port}", "TOKIO_WORKER_THREADS": "1", "AWS_EC2_METADATA_DISABLED": "true"}
        server = self.lab.start(self.name, command, limited=f"{self.name}-{tls}", environment=environment)
        self.servers.append(server)
        self.ports[tls] = (server, port)
        self.lab.wait_for_url(server, f"{local(port, tls)}stats")

    def _fence(self, port):
        """It has no option for an address and no authentication: others must not reach it."""
        for tables in ("iptables", "ip6tables"):
            rule = ["INPUT", "!", "-i", "lo", "-p", "tcp", "--dport", str(port), "-j", "DROP"]
            if shutil.which(tables) and subprocess.run([tables, "-I", *rule], stderr=subprocess.DEVNULL).returncode == 0:
                self.fenced.append([tables, "-D", *rule])
                left.fence(self.lab.folder, self.fenced[-1])
        if not self.fenced and not any("cachey" in note for note in self.lab.notes):
            self.lab.notes.append("cachey listened on all addresses: its port could not be fenced")

    def stop(self):
        super().stop()
        for tls in (True, False):
            self.lab.drop_limit(f"{self.name}-{tls}")
        for rule in self.fenced:
            subprocess.run(rule, stderr=subprocess.DEVNULL)
        # Each start begins anew: what the last one left would be room that is taken twice.
        for disk in self.folder.glob("disk-*") if self.folder else ():
            disk.unlink()
        self.ports, self.fenced = {}, []

    def servers_of(self, tls):
        return [self.ports[tls][0]]

    def target(self, cell):
        return f"{local(self.ports[cell.tls][1], cell.tls)}fetch/{BUCKET}/"

    def words(self, cell):
        # It takes no request without a range. A page of its own is larger than any object here, and serves all of it and every range.
        # A miss is asked for exactly: a page takes 16 MiB of what downloads may take. A hit costs the same either way.
        exact = ["--header", "C0-Exact: true"] if cell.workload == "miss" and not cell.ranged else []
        return ["--range", "64KiB" if cell.ranged else cell.size, *exact, "--header", "C0-Config: fps=true"]


class Rclone(System):
    name = "rclone"
    serves_both = False
    settings = "serve webdav, --vfs-cache-mode writes, uploads held back, a remote in memory, GOMAXPROCS=1; it writes into the page cache and syncs nothing."

    def cannot(self, cell):
        return None if cell.workload == "put" else "for writes: the only packaged server that acknowledges before it uploads"

    def version(self):
        return first_line("rclone", "version").removeprefix("rclone v")

    def _start(self, group, tls):
        (flavour,) = tls
        self.port = free_port()
        secure = ["--cert", self.lab.folder / "cert.pem", "--key", self.lab.folder / "key.pem"] if flavour else []
        server = self.run(["rclone", "serve", "webdav", f":memory:{BUCKET}", "--addr", f"127.0.0.1:{self.port}", *secure, "--vfs-cache-mode", "writes",
                           "--vfs-write-back", f"{HELD_SECONDS}s", "--cache-dir", self.folder / "cache", "--transfers", 4],
                          environment={"GOMAXPROCS": "1", "RCLONE_CONFIG": str(self.folder / "rclone.conf")})
        self.lab.wait_for_url(server, local(self.port, flavour))

    def target(self, cell):
        return local(self.port, cell.tls)
