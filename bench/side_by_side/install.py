"""What has to be there before anything is measured: packages of Debian, cachey, and our own binaries. Starts no service."""

import os
import pathlib
import shutil
import subprocess
import sys

from processes import ROOT

CACHEY_VERSION = "0.13.2"
# Program to package. Those without which nothing can be measured, those that a peer needs, and those of single rows.
NEEDED = {"curl": "curl", "openssl": "openssl", "taskset": "util-linux", "findmnt": "mount"}
OF_PEERS = {"nginx": {"nginx": "nginx-light"}, "nginx-static": {"nginx": "nginx-light"}, "nginx-slice": {"nginx": "nginx-light"},
            "varnish": {"varnishd": "varnish", "hitch": "hitch", "gcc": "gcc"},
            "ats": {"traffic_server": "trafficserver"}, "rclone": {"rclone": "rclone"}}
OF_CHECKS = {"fio": "fio", "wrk": "wrk", "h2load": "nghttp2-client"}
# Debian starts these when they are installed. The ones that are measured are ours.
SERVICES = {"nginx-light": "nginx", "varnish": "varnish", "hitch": "hitch", "trafficserver": "trafficserver"}
# Where Debian puts servers; the path of a user without root's has it not.
os.environ["PATH"] += ":/usr/sbin:/sbin"


def packages(systems, only_look=False):
    """Installs what the systems need. A peer whose package cannot be had is told by `cannot_have`; what all need ends the program."""
    wanted = dict(NEEDED)
    for name in systems:
        wanted.update(OF_PEERS.get(name, {}))
    wanted.update(OF_CHECKS)
    missing = sorted({package for program, package in wanted.items() if not shutil.which(program)})
    if missing and not only_look:
        _apt(missing)
    still = [program for program in NEEDED if not shutil.which(program)]
    if still:
        raise SystemExit(f"missing {', '.join(still)}: install them, or run this as root once")


def _apt(missing):
    print(f"installing {' '.join(missing)}", flush=True)
    root = [] if os.getuid() == 0 else ["sudo", "-n"]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    if subprocess.run([*root, "apt-get", "update", "-qq"], **quiet).returncode == 0:
        subprocess.run([*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-qq", "--no-install-recommends",
                        *missing], **quiet)
    for package in missing:
        if package in SERVICES:
            subprocess.run([*root, "service", SERVICES[package], "stop"], stderr=subprocess.DEVNULL, **quiet)


def cannot_have(name):
    """Why a peer cannot be measured here, or None."""
    if name == "cachey":
        return None if cachey() else "it could not be built"
    missing = [program for program in OF_PEERS.get(name, {}) if not shutil.which(program)]
    return f"{', '.join(missing)} is not installed" if missing else None


def target_folder():
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")


def cachey():
    """The program, built once into target/peers (a quarter of an hour). CACHEY names another."""
    if os.environ.get("CACHEY"):
        return pathlib.Path(os.environ["CACHEY"])
    folder = ROOT / "target" / "peers"
    program = folder / "bin" / "server"
    if not program.exists():
        print(f"building cachey {CACHEY_VERSION} into {folder.relative_to(ROOT)}, once", flush=True)
        done = subprocess.run(["cargo", "install", "--quiet", "cachey", "--locked", "--version", CACHEY_VERSION, "--features", "jemalloc",
                               "--root", folder], stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            print("cachey could not be built", file=sys.stderr)
    return program if program.exists() else None


def binaries():
    """(folder of the generator and the stub, Forebay). FOREBAY_BENCH and FOREBAY name some that need no build."""
    bench, forebay = os.environ.get("FOREBAY_BENCH"), os.environ.get("FOREBAY")
    wanted = [] if bench else ["-p", "forebay-bench"]
    wanted += [] if forebay else ["-p", "forebay"]
    if wanted:
        print("building the release binaries", flush=True)
        subprocess.run(["cargo", "build", "--release", "--quiet", *wanted], cwd=ROOT, check=True)
    release = target_folder() / "release"
    return (pathlib.Path(bench).resolve().parent if bench else release), pathlib.Path(forebay).resolve() if forebay else release / "forebay"
