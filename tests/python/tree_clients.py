"""How each client carries a tree of files to a volume and back: one class a client, all with the same four verbs.

Owns the clients' command lines, nothing of what is expected of them: see client_matrix.py. What a client needs beside an
endpoint and a pair of keys is said here and in the README, and nowhere hidden.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse

from forebay_proxy import VOLUME

REGION = "us-east-1"
# Below these the clients send one PUT; the smallest that S3 lets parts be, so that no large file is needed to see parts.
PART_MIB = 5
COMMAND_SECONDS_MAX = 300
MOUNT_SECONDS_MAX = 60


class ClientFailed(Exception):
    """A client's command ended with an error; the message has its last words."""


class Client:
    """One client, for one proxy. `place` is a folder of its own; paths below it are made anew by whoever asks."""

    name = ""
    # Whether each file is an object of its own, below the tree's prefix, with the file's bytes.
    files_are_objects = True
    # Whether it can rename: then the tree is changed by it, too.
    renames = False
    # Whether objects without a byte can be read with it.
    reads_empty = True
    # Whether it keeps a folder by an empty object of its own.
    makes_folders = False
    # Whether it can be told to trust the proxy's certificate.
    tls = True

    def __init__(self, proxy, pair, place):
        self.proxy, self.pair, self.place = proxy, pair, place

    @classmethod
    def missing(cls):
        """What is not installed and is needed, or None."""
        return None

    # The verbs. `delete` takes away the whole tree.

    def up(self, folder):
        raise NotImplementedError

    def down(self, folder):
        raise NotImplementedError

    def delete(self):
        raise NotImplementedError

    def close(self):
        """Leaves nothing running and nothing mounted."""

    # What they share.

    def environment(self):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RCLONE_", "FOREBAY_"))}
        kept |= {"HOME": self.place, "LC_ALL": "C.UTF-8", "AWS_EC2_METADATA_DISABLED": "true"}
        return kept | self.certificates("SSL_CERT_FILE", "CURL_CA_BUNDLE")

    def certificates(self, *names):
        """No certificate but the proxy's own is trusted by any client."""
        return {name: self.proxy.certificate for name in names if self.proxy.tls}

    def aws_environment(self):
        pair = {"AWS_ACCESS_KEY_ID": self.pair[0], "AWS_SECRET_ACCESS_KEY": self.pair[1], "AWS_DEFAULT_REGION": REGION}
        return self.environment() | pair | {"AWS_REGION": REGION} | self.certificates("AWS_CA_BUNDLE")

    def run(self, *words, environment=None):
        done = subprocess.run(
            words, env=environment or self.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=COMMAND_SECONDS_MAX, cwd=self.place,
        )
        if done.returncode != 0:
            said = done.stdout.decode(errors="replace").strip()[-1200:]
            raise ClientFailed(f"{os.path.basename(words[0])} gave {done.returncode}: {said}")
        return done.stdout.decode(errors="replace")


class Aws(Client):
    """The aws command: `sync` both ways and a recursive `rm`."""

    command = ()

    def aws(self, *words):
        return self.run(*self.command, "--endpoint-url", self.proxy.url, "s3", *words, environment=self.aws_environment())

    def up(self, folder):
        self.aws("sync", "--no-progress", folder, f"s3://{VOLUME}/tree/")

    def down(self, folder):
        self.aws("sync", "--no-progress", f"s3://{VOLUME}/tree/", folder)

    def delete(self):
        self.aws("rm", "--recursive", f"s3://{VOLUME}/tree/")


class CurrentAws(Aws):
    name = "awscli 1, current"
    command = (sys.executable, os.path.join(os.path.dirname(sys.executable), "aws"))

    @classmethod
    def missing(cls):
        return None if os.path.exists(cls.command[1]) else "awscli beside this Python"


class DebianAws(Aws):
    name = "awscli 2.9, Debian's"
    # Whatever other `aws` is first in PATH.
    command = ("/usr/bin/aws",)

    def aws_environment(self):
        # It runs Debian's Python, and must not find the modules of a virtual environment.
        return {name: value for name, value in super().aws_environment().items() if not name.startswith("PYTHON")}

    @classmethod
    def missing(cls):
        return None if os.path.exists(cls.command[0]) else "Debian's package awscli"


class CurrentBoto3(Client):
    name = "boto3, current"
    python = sys.executable

    def tree(self, action, folder=""):
        program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "boto3_tree.py")
        self.run(self.python, program, action, self.proxy.url, VOLUME, "tree/", folder, environment=self.aws_environment())

    def up(self, folder):
        self.tree("up", folder)

    def down(self, folder):
        self.tree("down", folder)

    def delete(self):
        self.tree("delete")


class OldBoto3(CurrentBoto3):
    name = "boto3 before 1.36"
    python = os.environ.get("FOREBAY_TEST_OLD_BOTO3_PYTHON", "")

    @classmethod
    def missing(cls):
        return None if os.path.exists(cls.python) else "FOREBAY_TEST_OLD_BOTO3_PYTHON"


class S3cmd(Client):
    name = "s3cmd"

    def s3cmd(self, *words):
        host = self.proxy.url.split("//")[1]
        command = ["s3cmd", "--config", os.devnull, f"--host={host}", f"--host-bucket={host}", f"--region={REGION}"]
        command += ["--ssl", f"--ca-certs={self.proxy.certificate}"] if self.proxy.tls else ["--no-ssl"]
        command += [f"--access_key={self.pair[0]}", f"--secret_key={self.pair[1]}", "--no-progress"]
        return self.run(*command, f"--multipart-chunk-size-mb={PART_MIB}", *words)

    def up(self, folder):
        self.s3cmd("sync", folder + "/", f"s3://{VOLUME}/tree/")

    def down(self, folder):
        self.s3cmd("sync", f"s3://{VOLUME}/tree/", folder + "/")

    def delete(self):
        self.s3cmd("del", "--recursive", "--force", f"s3://{VOLUME}/tree/")

    @classmethod
    def missing(cls):
        return None if shutil.which("s3cmd") else "s3cmd"


class Rclone(Client):
    """`copy`, `sync`, `check` and `delete`."""

    name = "rclone"
    remote = f"forebay:{VOLUME}/tree"

    def environment(self):
        remote = {
            "TYPE": "s3", "PROVIDER": "Other", "ENDPOINT": self.proxy.url, "REGION": REGION, "FORCE_PATH_STYLE": "true",
            "ACCESS_KEY_ID": self.pair[0], "SECRET_ACCESS_KEY": self.pair[1],
            "CHUNK_SIZE": f"{PART_MIB}Mi", "UPLOAD_CUTOFF": f"{PART_MIB}Mi",
        }
        return super().environment() | {f"RCLONE_CONFIG_FOREBAY_{name}": value for name, value in remote.items()}

    def rclone(self, *words):
        return self.run("rclone", "--config", os.devnull, *words)

    def up(self, folder):
        self.rclone("copy", folder, self.remote)
        # Its parts must add up to what it takes a file's checksum to be.
        self.rclone("check", folder, self.remote)

    def down(self, folder):
        self.rclone("sync", self.remote, folder)
        self.rclone("check", "--download", folder, self.remote)

    def delete(self):
        self.rclone("delete", self.remote)

    @classmethod
    def missing(cls):
        return None if shutil.which("rclone") else "rclone"


class Curl(Client):
    """`curl --aws-sigv4`, a process for each file."""

    name = "curl --aws-sigv4"

    def curl(self, key, *words):
        # Old releases leave the hash of the payload out, and sign a path as it is written: it must be escaped as AWS does.
        command = ["curl", "--silent", "--show-error", "--fail", "--noproxy", "*", "--user", ":".join(self.pair)]
        command += ["--aws-sigv4", f"aws:amz:{REGION}:s3", "-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"]
        command += ["--retry", "10", "--retry-all-errors", "--retry-connrefused", "--retry-delay", "1"]
        if self.proxy.tls:
            command += ["--cacert", self.proxy.certificate]
        self.run(*command, *words, f"{self.proxy.url}/{VOLUME}/tree/{urllib.parse.quote(key, safe='/~')}")

    def up(self, folder):
        self.names = []
        for directory, _, names in os.walk(folder):
            for name in names:
                path = os.path.join(directory, name)
                key = os.path.relpath(path, folder)
                self.curl(key, "--upload-file", path)
                self.names.append(key)

    def down(self, folder):
        for key in self.names:
            path = os.path.join(folder, key)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            self.curl(key, "--output", path)

    def delete(self):
        for key in self.names:
            self.curl(key, "--request", "DELETE")


class Mount(Client):
    """A volume mounted as a file system: files are copied, renamed and removed as in any folder.

    Each verb mounts and unmounts, so that nothing is read from what a client keeps in memory.
    """

    renames = makes_folders = True
    process = None

    @property
    def mountpoint(self):
        return os.path.join(self.place, "mount")

    def command(self):
        """The words that mount in the foreground, and their environment."""
        raise NotImplementedError

    def mount(self):
        os.makedirs(self.mountpoint, exist_ok=True)
        words, environment = self.command()
        with open(os.path.join(self.place, "mount.log"), "ab") as log:
            self.process = subprocess.Popen(
                words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.place
            )
        deadline = time.monotonic() + MOUNT_SECONDS_MAX
        while not os.path.ismount(self.mountpoint):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise ClientFailed(f"it was not mounted: {self.last_words()}")
            time.sleep(0.1)

    def last_words(self):
        with open(os.path.join(self.place, "mount.log"), errors="replace") as log:
            return log.read()[-1200:]

    def unmount(self):
        # A file that was closed a moment ago may still be busy for the kernel.
        for _ in range(50):
            done = subprocess.run(["fusermount", "-u", self.mountpoint], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if done.returncode == 0:
                break
            time.sleep(0.1)
        try:
            self.process.wait(MOUNT_SECONDS_MAX)
        except subprocess.TimeoutExpired as error:
            raise ClientFailed("it did not end after it was unmounted") from error
        finally:
            self.close()

    def close(self):
        if self.process is None:
            return
        if self.process.poll() is None:
            subprocess.run(["fusermount", "-u", "-z", self.mountpoint], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self.process.kill()
        self.process.wait()
        self.process = None

    def mounted(self, do):
        self.mount()
        try:
            do()
        except OSError as error:
            raise ClientFailed(f"{type(error).__name__}: {str(error)[:500]}; it said: {self.last_words()}") from error
        finally:
            self.unmount()

    def up(self, folder):
        self.mounted(lambda: copy_tree(folder, os.path.join(self.mountpoint, "tree")))

    def down(self, folder):
        self.mounted(lambda: copy_tree(os.path.join(self.mountpoint, "tree"), folder))

    def rename(self, source, target):
        """Renames a file of the tree."""
        tree = os.path.join(self.mountpoint, "tree")
        self.mounted(lambda: os.rename(os.path.join(tree, source), os.path.join(tree, target)))

    def delete(self):
        self.mounted(lambda: shutil.rmtree(os.path.join(self.mountpoint, "tree")))


def copy_tree(source, target):
    """Copies files and their bytes, and waits for each close to be told: a mount may report there what went wrong with an upload.

    Times and attributes are left: not every mount has those of its own.
    """
    for directory, _, names in os.walk(source, onerror=raise_it):
        there = os.path.normpath(os.path.join(target, os.path.relpath(directory, source)))
        os.makedirs(there, exist_ok=True)
        for name in names:
            with open(os.path.join(directory, name), "rb") as reader, open(os.path.join(there, name), "wb") as writer:
                shutil.copyfileobj(reader, writer, 1 << 20)


def raise_it(error):
    raise error


class S3fs(Mount):
    name = "s3fs"

    def command(self):
        passwd = os.path.join(self.place, "passwd")
        if not os.path.exists(passwd):
            with open(os.open(passwd, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                file.write(":".join(self.pair))
        options = f"url={self.proxy.url},use_path_request_style,passwd_file={passwd},endpoint={REGION},multipart_size={PART_MIB}"
        return ["s3fs", VOLUME, self.mountpoint, "-f", "-o", options], self.environment()

    @classmethod
    def missing(cls):
        return None if shutil.which("s3fs") and os.path.exists("/dev/fuse") else "s3fs and /dev/fuse"


class RcloneMount(Mount, Rclone):
    name = "rclone mount"
    # What is written is kept here until it is uploaded, also from one mount to the next.
    cache = "cache"

    def down(self, folder):
        # There, what was written would be read, too.
        self.cache = "empty-cache"
        shutil.rmtree(os.path.join(self.place, self.cache), ignore_errors=True)
        try:
            super().down(folder)
        finally:
            self.cache = "cache"

    def command(self):
        words = ["rclone", "--config", os.devnull, "mount", f"forebay:{VOLUME}", self.mountpoint, "--vfs-cache-mode", "writes"]
        words += ["--vfs-write-back", "0s", "--cache-dir", os.path.join(self.place, self.cache), "--rc", "--rc-no-auth"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.control = f"127.0.0.1:{probe.getsockname()[1]}"
        return [*words, "--rc-addr", self.control], self.environment()

    def unmount(self):
        self.wait_for_uploads()
        super().unmount()

    def wait_for_uploads(self):
        """Waits until all that was written is uploaded, as its own interface tells."""

        deadline = time.monotonic() + COMMAND_SECONDS_MAX
        while time.monotonic() < deadline:
            said = self.run("curl", "--silent", "--noproxy", "*", "-X", "POST", f"http://{self.control}/vfs/stats")
            cache = json.loads(said).get("diskCache", {})
            if cache and cache["uploadsInProgress"] == cache["uploadsQueued"] == 0:
                return
            time.sleep(0.1)
        raise ClientFailed("its uploads do not end")


class JuiceFs(Mount):
    """A file system of its own, with SQLite for its names, whose blocks are objects."""

    name = "JuiceFS"
    files_are_objects = False
    binary = os.environ.get("FOREBAY_TEST_JUICEFS", "")

    @property
    def names(self):
        return f"sqlite3://{self.place}/names.db"

    def format(self):
        words = ["format", "--storage", "s3", "--bucket", f"{self.proxy.url}/{VOLUME}", "--access-key", self.pair[0]]
        self.run(self.binary, *words, "--secret-key", self.pair[1], self.names, "forebay", environment=self.aws_environment())

    def command(self):
        # Nothing is kept on this side: what is read comes from the volume.
        words = [self.binary, "mount", "--no-usage-report", "--metrics", "127.0.0.1:0", "--cache-size", "0"]
        return [*words, self.names, self.mountpoint], self.aws_environment()

    def up(self, folder):
        if not os.path.exists(os.path.join(self.place, "names.db")):
            self.format()
        super().up(folder)

    @classmethod
    def missing(cls):
        return None if os.path.exists(cls.binary) and os.path.exists("/dev/fuse") else "FOREBAY_TEST_JUICEFS and /dev/fuse"


class Library(Client):
    """A library that data loaders are made of; library_tree.py is its program."""

    tls = False
    library = ""
    python = os.environ.get("FOREBAY_TEST_LIBRARIES_PYTHON", "")

    def tree(self, action, folder=""):
        program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "library_tree.py")
        words = [self.python, program, self.library, action, self.proxy.url, VOLUME, "tree/", folder]
        self.run(*words, environment=self.aws_environment())

    def up(self, folder):
        self.tree("up", folder)

    def down(self, folder):
        self.tree("down", folder)

    def delete(self):
        self.tree("delete")

    @classmethod
    def missing(cls):
        return None if os.path.exists(cls.python) else "FOREBAY_TEST_LIBRARIES_PYTHON"


def library(name, package):
    return type(package, (Library,), {"name": name, "library": package, "makes_folders": package == "pyarrow"})


LIBRARIES = tuple(
    library(name, package)
    for name, package in (
        ("MinIO's SDK", "minio"), ("object_store (Rust)", "obstore"), ("PyArrow", "pyarrow"), ("fsspec", "s3fs"),
        ("Mountpoint's client", "s3torchconnector"),
    )
)

ALL = (CurrentAws, DebianAws, CurrentBoto3, OldBoto3, S3cmd, Rclone, Curl, RcloneMount, S3fs, JuiceFs)
