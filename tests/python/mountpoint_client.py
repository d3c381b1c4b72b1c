"""Mountpoint for S3 as one more client of the matrix: it only reads, so boto3 writes and deletes for it.

The program is the example `mount_from_config` of its own library, with Amazon's own C client below. It mounts what a manifest
names; here each object is a channel with a manifest of one row, whose checksum is then the manifest's, too.
"""

import base64
import json
import os
import shutil
import subprocess

import boto3

from forebay_proxy import VOLUME
from tree_clients import REGION, CurrentBoto3, Mount, copy_tree

VERSION = "0.11.0"
# What its build needs beside a Rust toolchain.
PACKAGES = ("cmake", "clang", "libclang-dev", "libfuse3-dev", "libfuse-dev", "fuse3", "pkg-config")
CRC32C_POLYNOMIAL = 0x82F63B78
MEMORY_BYTES_MAX = 1 << 30


def crc32c(data):
    """Bit by bit: for a few short rows."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (CRC32C_POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


class Mountpoint(Mount, CurrentBoto3):
    name = "Mountpoint for S3"
    renames = False
    # An empty object has no place in a manifest.
    reads_empty = False
    # It trusts the system's certificates only.
    tls = False
    binary = os.path.expanduser("~/.cargo/bin/mount_from_config")

    @classmethod
    def missing(cls):
        return None if os.path.exists(cls.binary) and os.path.exists("/dev/fuse") else "mount_from_config and /dev/fuse"

    @classmethod
    def build(cls, root):
        if cls.missing() is None:
            return
        as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
        subprocess.run([*as_root, "apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES], check=True)
        words = ["cargo", "install", "mountpoint-s3-fs", "--version", VERSION, "--locked", "--example", "mount_from_config"]
        subprocess.run([*words, "--features", "manifest,event_log"], cwd=root, check=True)

    def up(self, folder):
        CurrentBoto3.up(self, folder)

    def delete(self):
        CurrentBoto3.delete(self)

    def down(self, folder):
        def copy():
            for number in range(self.write_config()):
                copy_tree(os.path.join(self.mountpoint, f"d{number}", "tree"), folder)

        # Its own cache on disk would answer what was read before.
        shutil.rmtree(self.own("cache"), ignore_errors=True)
        self.write_config()
        self.mounted(copy)

    def own(self, name):
        return os.path.join(self.place, name)

    def write_config(self):
        """Writes manifests and settings for all objects of the tree; returns how many there are."""
        environment = self.aws_environment()
        client = boto3.client(
            "s3", endpoint_url=self.proxy.url, region_name=REGION, aws_access_key_id=self.pair[0],
            aws_secret_access_key=self.pair[1],
        )
        assert environment["AWS_ACCESS_KEY_ID"] == self.pair[0]
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=VOLUME, Prefix="tree/")
        # A row is a line of CSV as it stands, and an empty object has no place in a manifest.
        items = [item for page in pages for item in page["Contents"] if item["Size"] and "," not in item["Key"]]
        channels = []
        for number, item in enumerate(items):
            key, etag, size = item["Key"], item["ETag"].strip('"'), item["Size"]
            checksum = base64.b64encode(crc32c(key.encode() + etag.encode() + size.to_bytes(8, "big")).to_bytes(4, "big")).decode()
            path = self.own(f"manifest-{number}.csv")
            with open(path, "w") as manifest:
                manifest.write(f"{key},{etag},{size},{checksum}\n")
            channel = {"directory_name": f"d{number}", "bucket_name": VOLUME, "manifest_path": path, "manifest_checksum": checksum}
            channels.append(channel)
        for name in ("meta", "events", "cache"):
            os.makedirs(self.own(name), exist_ok=True)
        settings = {
            "config_version": "0.0.1", "mountpoint": self.mountpoint, "metadata_store_dir": self.own("meta"),
            "event_log_dir": self.own("events"), "region": REGION, "endpoint_url": self.proxy.url, "channels": channels,
            "throughput_config": {"type": "Explicit", "throughput": 10.0}, "memory_limit_bytes": MEMORY_BYTES_MAX,
            "disk_cache": {"path": self.own("cache"), "limit_bytes": MEMORY_BYTES_MAX},
        }
        with open(self.own("mountpoint.json"), "w") as file:
            json.dump(settings, file)
        return len(channels)

    def command(self):
        return [self.binary, "-c", self.own("mountpoint.json")], self.aws_environment()
