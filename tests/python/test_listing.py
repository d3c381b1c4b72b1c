"""Clients that list and delete: boto3's paginators, the aws command, rclone, s3cmd, s3fs.

Run by scripts/test, as test_clients.py. The same files are listed where the store has them and where
only the cache does: without writeback, and with uploads that are put off for longer than a test takes.
"""

import base64
import filecmp
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

import boto3
import botocore.config
import botocore.exceptions

from forebay_proxy import VOLUME, Proxy, Store

REGION = "us-east-1"
WRITER = ("FBWRITER", "writer-secret-0123456789abcdef")
READER = ("FBREADER", "reader-secret-0123456789abcdef")

# Names that need escaping somewhere, in three directories; no client is asked for more than it can.
FILES = ["a.txt", "b c+d.txt", "dir/one", "dir/two", "dir/sub/three & four", "dür/fünf%20", "z~(1)'!.bin"]
MOUNT_SECONDS_MAX = 30
# HTTP's dates are whole seconds, and a store's clock need not tick with ours.
CLOCK_SECONDS = 1


class DelayedProxy(Proxy):
    """Acknowledges writes and uploads nothing while a test runs."""

    def command(self):
        return [*super().command(), "--writebackDelay", "3600000"]


class Listing:
    """The tests; each class below says what is behind and whether objects stay dirty."""

    @classmethod
    def setUpClass(cls):
        cls.proxy = cls.make_proxy(os.environ["FOREBAY_TEST_BINARY"])
        cls.addClassCleanup(cls.proxy.close)  # Also when the start fails.
        cls.proxy.give_keys([(WRITER, "rw"), (READER, "r")])
        cls.proxy.start()

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="forebay-listing-", dir=self.proxy.folder)
        self.source = os.path.join(self.folder, "source")
        for number, name in enumerate(FILES):
            path = os.path.join(self.source, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(bytes([number]) * (1000 * number + 1))
        # Clients compare times by the second, and an object is never older than its file.
        past = time.time() - 3600
        for directory, _, names in os.walk(self.source):
            for name in names:
                os.utime(os.path.join(directory, name), (past, past))

    def tearDown(self):
        self.assertEqual(self.keys(), [], "a test leaves nothing behind")

    # The clients.

    def s3(self, pair=WRITER):
        config = botocore.config.Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"})
        return boto3.client(
            "s3", endpoint_url=self.proxy.url, region_name=REGION, aws_access_key_id=pair[0],
            aws_secret_access_key=pair[1], config=config,
        )

    def run_tool(self, *words, environment=(), check=True):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RCLONE_"))}
        inherited |= {"HOME": self.folder, "LC_ALL": "C.UTF-8"} | dict(environment)
        done = subprocess.run(words, env=inherited, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=300)
        if check and done.returncode != 0:
            self.fail(f"{words} gave {done.returncode}:\n{done.stdout.decode()}\n{done.stderr.decode()}")
        return done.stdout.decode()

    def aws(self, *words, **options):
        pair = {"AWS_ACCESS_KEY_ID": WRITER[0], "AWS_SECRET_ACCESS_KEY": WRITER[1], "AWS_DEFAULT_REGION": REGION, "AWS_MAX_ATTEMPTS": "1"}
        command = [sys.executable, os.path.join(os.path.dirname(sys.executable), "aws"), "--endpoint-url", self.proxy.url]
        return self.run_tool(*command, *words, environment=pair, **options)

    def rclone(self, *words, **options):
        remote = {
            "TYPE": "s3", "PROVIDER": "Other", "ENDPOINT": self.proxy.url, "REGION": REGION,
            "ACCESS_KEY_ID": WRITER[0], "SECRET_ACCESS_KEY": WRITER[1], "FORCE_PATH_STYLE": "true",
        }
        environment = {f"RCLONE_CONFIG_FB_{name}": value for name, value in remote.items()}
        command = ["rclone", "--config", os.devnull, "--retries", "1", "--low-level-retries", "1"]
        return self.run_tool(*command, *words, environment=environment, **options)

    def s3cmd(self, *words, **options):
        host = self.proxy.url.split("//")[1]
        command = ["s3cmd", "--config", os.devnull, "--no-ssl", f"--host={host}", f"--host-bucket={host}", f"--region={REGION}"]
        command += [f"--access_key={WRITER[0]}", f"--secret_key={WRITER[1]}", "--no-progress"]
        return self.run_tool(*command, *words, **options)

    # What the tests share.

    def keys(self, **arguments):
        pages = self.s3().get_paginator("list_objects_v2").paginate(Bucket=VOLUME, **arguments)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def upload(self, prefix=""):
        s3 = self.s3()
        for name in FILES:
            with open(os.path.join(self.source, name), "rb") as file:
                body = file.read()
            # With its MD5 an object has the ETag that the store gives it, whoever is asked.
            digest = base64.b64encode(hashlib.md5(body).digest()).decode()
            s3.put_object(Bucket=VOLUME, Key=prefix + name, Body=body, ContentMD5=digest)

    def assert_written_since(self, began, *moments):
        """A store lists when it took an object, the proxy tells when it did: seconds apart if uploads are slow."""
        for moment in moments:
            self.assertGreaterEqual(moment.timestamp(), began - CLOCK_SECONDS)
            self.assertLessEqual(moment.timestamp(), time.time() + CLOCK_SECONDS)

    def assert_same_tree(self, folder):
        for name in FILES:
            same = filecmp.cmp(os.path.join(self.source, name), os.path.join(folder, name), shallow=False)
            self.assertTrue(same, name)
        count = sum(len(names) for _, _, names in os.walk(folder))
        self.assertEqual(count, len(FILES))

    def delete_all(self):
        keys = self.keys()
        deleted = self.s3().delete_objects(Bucket=VOLUME, Delete={"Objects": [{"Key": key} for key in keys]})
        self.assertEqual([item["Key"] for item in deleted.get("Deleted", [])], keys)
        self.assertNotIn("Errors", deleted)

    # The tests.

    def test_boto3_pages(self):
        s3 = self.s3()
        expected = sorted((f"p/{name}" for name in FILES), key=lambda key: key.encode())
        began = time.time()
        self.upload("p/")
        for operation in ("list_objects", "list_objects_v2"):
            for size in (1, 3, 1000):
                with self.subTest(operation, size=size):
                    pages = s3.get_paginator(operation).paginate(Bucket=VOLUME, PaginationConfig={"PageSize": size})
                    items = [item for page in pages for item in page.get("Contents", [])]
                    self.assertEqual([item["Key"] for item in items], expected)
                    for item in items:
                        head = s3.head_object(Bucket=VOLUME, Key=item["Key"])
                        self.assertEqual((item["Size"], item["ETag"]), (head["ContentLength"], head["ETag"]))
                        self.assert_written_since(began, item["LastModified"], head["LastModified"])
                    pages = s3.get_paginator(operation).paginate(
                        Bucket=VOLUME, Prefix="p/", Delimiter="/", PaginationConfig={"PageSize": size}
                    )
                    pages = list(pages)
                    prefixes = [item["Prefix"] for page in pages for item in page.get("CommonPrefixes", [])]
                    keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
                    self.assertEqual(prefixes, ["p/dir/", "p/dür/"])
                    self.assertEqual(keys, ["p/a.txt", "p/b c+d.txt", "p/z~(1)'!.bin"])
        self.assertEqual(self.keys(Prefix="p/dir/", StartAfter="p/dir/one"), ["p/dir/sub/three & four", "p/dir/two"])
        self.delete_all()

    def test_boto3_deletes_and_buckets(self):
        s3, reader = self.s3(), self.s3(READER)
        odd = ["\r\n\t", "\x01", "<&>'\"", " blank ", "ü"]
        for key in odd:
            s3.put_object(Bucket=VOLUME, Key=key, Body=b"x")
        self.assertEqual(self.keys(), sorted(odd))
        answer = s3.delete_objects(Bucket=VOLUME, Delete={"Objects": [{"Key": key} for key in odd if key != "\x01"], "Quiet": True})
        self.assertNotIn("Deleted", answer)
        self.assertEqual(self.keys(), ["\x01"])
        with self.assertRaises(botocore.exceptions.ClientError) as refused:
            reader.delete_objects(Bucket=VOLUME, Delete={"Objects": [{"Key": "\x01"}]})
        self.assertEqual(refused.exception.response["Error"]["Code"], "AccessDenied")
        s3.delete_object(Bucket=VOLUME, Key="\x01")
        self.assertEqual([bucket["Name"] for bucket in reader.list_buckets()["Buckets"]], [VOLUME])
        self.assertEqual(reader.head_bucket(Bucket=VOLUME)["ResponseMetadata"]["HTTPStatusCode"], 200)
        self.assertIsNone(reader.get_bucket_location(Bucket=VOLUME)["LocationConstraint"])
        self.assertNotIn("Status", reader.get_bucket_versioning(Bucket=VOLUME))
        if isinstance(self, FolderDirty):
            with self.assertRaises(botocore.exceptions.ClientError) as refused:
                reader.list_object_versions(Bucket=VOLUME)
            self.assertEqual(refused.exception.response["Error"]["Code"], "NotImplemented")
        else:
            s3.put_object(Bucket=VOLUME, Key="v", Body=b"x")
            versions = reader.list_object_versions(Bucket=VOLUME)["Versions"]
            self.assertEqual([(version["Key"], version["VersionId"]) for version in versions], [("v", "null")])
            s3.delete_object(Bucket=VOLUME, Key="v")
        self.assertEqual(reader.get_bucket_acl(Bucket=VOLUME)["Grants"][0]["Permission"], "FULL_CONTROL")
        for call in (s3.get_bucket_policy, s3.get_bucket_tagging, s3.delete_bucket):
            with self.assertRaises(botocore.exceptions.ClientError) as refused:
                call(Bucket=VOLUME)
            self.assertEqual(refused.exception.response["Error"]["Code"], "NotImplemented")
        with self.assertRaises(s3.exceptions.BucketAlreadyOwnedByYou):
            s3.create_bucket(Bucket=VOLUME)
        with self.assertRaises(s3.exceptions.NoSuchBucket):
            s3.list_objects_v2(Bucket="no-such-volume")

    def test_aws_ls_sync_rm(self):
        url, target = f"s3://{VOLUME}/tree/", os.path.join(self.folder, "target")
        self.assertIn(VOLUME, self.aws("s3", "ls"))
        first = self.aws("s3", "sync", self.source, url)
        self.assertEqual(first.count("upload:"), len(FILES))
        self.assertEqual(self.aws("s3", "sync", self.source, url), "", "everything is there already")
        listed = self.aws("s3", "ls", url)
        self.assertIn("PRE dir/", listed)
        self.assertIn(" a.txt", listed)
        self.assertIn(f"Total Objects: {len(FILES)}", self.aws("s3", "ls", "--recursive", "--summarize", url))
        self.aws("s3", "sync", url, target)
        self.assert_same_tree(target)
        os.remove(os.path.join(self.source, "dir/one"))
        self.assertIn("delete: s3://vol/tree/dir/one", self.aws("s3", "sync", "--delete", self.source, url))
        self.assertEqual(self.aws("s3", "rm", "--recursive", url).count("delete:"), len(FILES) - 1)

    def test_rclone_sync_check_delete(self):
        remote = f"fb:{VOLUME}/tree"
        self.assertIn(VOLUME, self.rclone("lsd", "fb:"))
        self.rclone("sync", self.source, remote)
        self.assertEqual(sorted(self.rclone("lsf", "-R", "--files-only", remote).splitlines()), sorted(FILES))
        self.assertEqual(sorted(self.rclone("lsf", remote).splitlines()), sorted(["a.txt", "b c+d.txt", "dir/", "dür/", "z~(1)'!.bin"]))
        self.rclone("check", "--one-way", self.source, remote)
        self.rclone("check", "--download", self.source, remote)
        target = os.path.join(self.folder, "target")
        self.rclone("copy", remote, target)
        self.assert_same_tree(target)
        os.remove(os.path.join(self.source, "a.txt"))
        self.rclone("sync", self.source, remote)
        self.assertNotIn("a.txt", self.rclone("lsf", remote).splitlines())
        self.rclone("delete", remote)

    def test_s3cmd_ls_get_del(self):
        url = f"s3://{VOLUME}/tree/"
        self.assertIn(f"s3://{VOLUME}", self.s3cmd("ls"))
        self.s3cmd("sync", self.source + "/", url)
        listed = self.s3cmd("ls", "--recursive", url)
        for name in FILES:
            self.assertIn(url + name, listed)
        self.assertIn(f"DIR  {url}dir/", self.s3cmd("ls", url))
        target = os.path.join(self.folder, "target")
        os.mkdir(target)
        self.s3cmd("sync", url, target + "/")
        self.assert_same_tree(target)
        self.assertIn(f"{len(FILES)} objects", self.s3cmd("du", url))
        self.assertIn("Location:", self.s3cmd("info", f"s3://{VOLUME}"))
        self.s3cmd("del", "--recursive", "--force", url)

    def test_s3fs_shows_and_removes(self):
        mount, passwd = os.path.join(self.folder, "mount"), os.path.join(self.folder, "passwd")
        self.upload()
        os.mkdir(mount)
        with open(os.open(passwd, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(":".join(WRITER))
        options = f"url={self.proxy.url},use_path_request_style,passwd_file={passwd},endpoint={REGION}"
        version = re.search(r"V(\d+)\.(\d+)", self.run_tool("s3fs", "--version"))
        # Since then it has to be told that a directory may have no object of its own.
        if tuple(map(int, version.groups())) >= (1, 92):
            options += ",compat_dir"
        self.run_tool("s3fs", VOLUME, mount, "-o", options)
        try:
            deadline = time.monotonic() + MOUNT_SECONDS_MAX
            while not os.path.ismount(mount):
                self.assertLess(time.monotonic(), deadline, "it was not mounted")
                time.sleep(0.1)
            self.assert_same_tree(mount)
            with open(os.path.join(mount, "dir/written"), "w") as file:
                file.write("through the mount")
            written = self.s3().get_object(Bucket=VOLUME, Key="dir/written")
            self.assertEqual(written["Body"].read(), b"through the mount")
            for name in [*FILES, "dir/written"]:
                os.remove(os.path.join(mount, name))
            self.assertEqual([names for _, _, names in os.walk(mount) if names], [])
        finally:
            self.run_tool("fusermount", "-u", mount)
        # Directories that s3fs keeps by objects of its own.
        if self.keys():
            self.delete_all()


def missing(tool):
    """Where everything was installed for the tests, a tool that is missing is a failure."""
    return shutil.which(tool) is None and "FOREBAY_TEST_REQUIRE_SERVERS" not in os.environ


for tool, test in (("rclone", "test_rclone_sync_check_delete"), ("s3cmd", "test_s3cmd_ls_get_del"), ("s3fs", "test_s3fs_shows_and_removes")):
    setattr(Listing, test, unittest.skipIf(missing(tool), f"{tool} is not installed")(getattr(Listing, test)))


class FolderDirty(Listing, unittest.TestCase):
    @staticmethod
    def make_proxy(binary):
        return DelayedProxy(binary, shards=2, tls=False)


if "FOREBAY_TEST_S3_RGW_ENDPOINT" in os.environ:

    class RgwDirty(Listing, unittest.TestCase):
        @staticmethod
        def make_proxy(binary):
            return DelayedProxy(binary, store=Store("RGW"), shards=2, tls=False)

    class RgwWrittenThrough(Listing, unittest.TestCase):
        @staticmethod
        def make_proxy(binary):
            return Proxy(binary, store=Store("RGW"), shards=2, tls=False, writeback=False)

    class RgwWrittenBack(Listing, unittest.TestCase):
        @staticmethod
        def make_proxy(binary):
            return Proxy(binary, store=Store("RGW"), shards=2, tls=False)


if __name__ == "__main__":
    unittest.main()
