"""The command line of `scripts/bench-side-by-side`: what is measured, where results go, and that nothing is left behind."""

import argparse
import dataclasses
import datetime
import os
import pathlib
import shutil
import signal
import subprocess
import sys

from . import checks, install, plan, records, targets
from .lab import Lab
from .peers import Cachey, Rclone, TrafficServer, Varnish
from .rounds import Progress, Rounds
from .systems import Forebay, Nginx, NginxSlice, NginxStatic

FORMS = {"short": plan.short_form, "long": plan.long_form, "smoke": plan.smoke_form}
SYSTEMS = {system.name: system for system in (Forebay, Nginx, NginxSlice, NginxStatic, TrafficServer, Varnish, Cachey, Rclone)}
METHOD = [
    "One server on CPU 0, generator and store on CPU 1; what is not measured at the moment is stopped (SIGSTOP).",
    f"Each system may use {plan.MEMORY_BYTES // plan.MIB} MiB, page cache included, held by the kernel where it can be. Hits in RAM are of a set "
    f"of {plan.RAM_SET_BYTES // plan.MIB} MiB, hits on disk of one of {plan.DISK_SET_BYTES // plan.MIB} MiB, uniformly at random.",
    "Every object is read twice before it is measured and compared byte by byte; while it is measured, one body in 16 is.",
    "The store counts its GETs: a hit that went there, or a miss that did not, fails its cell. Bytes read from the device are recorded.",
    "TLS is 1.3 with AES-128-GCM for everybody, checked on each run; connections are kept alive; closed loop.",
    "Systems run in turn within each round, in turned order every other round; figures are medians of rounds, ratios are taken pair by pair.",
]
OPTIONS_THAT_STAY = ("form", "only", "systems", "rounds", "seconds")


def arguments(words=None):
    parser = argparse.ArgumentParser(prog="scripts/bench-side-by-side", formatter_class=argparse.RawDescriptionHelpFormatter,
                                     description="Measures Forebay beside its peers, on this machine, in one run, and writes the report.",
                                     epilog="FOREBAY, FOREBAY_BENCH and CACHEY name binaries to use instead of building them.")
    parser.add_argument("--form", choices=[*FORMS, "targets"], default="short",
                        help="short: ten minutes; long: the whole matrix, about an hour; targets: the table of targets; smoke: one cell")
    parser.add_argument("--only", type=words_of, default=[], metavar="WORD,…",
                        help="cells with these words alone: hit-ram, hit-disk, miss, put, 1MiB, range, 64, tls, plain …; of targets: letters, a … j")
    parser.add_argument("--systems", type=words_of, default=list(SYSTEMS), metavar="NAME,…", help=f"of {', '.join(SYSTEMS)}")
    parser.add_argument("--rounds", type=int, help="rounds of each cell, instead of the form's")
    parser.add_argument("--seconds", type=float, help="seconds of each run, instead of the form's")
    parser.add_argument("--out", type=pathlib.Path, help="folder of the results (default: a new one under target/side-by-side)")
    parser.add_argument("--resume", type=pathlib.Path, metavar="FOLDER", help="go on with the run whose results are there")
    parser.add_argument("--work", default="/var/tmp", help="where caches are: a folder on a real disk")
    parser.add_argument("--plan", action="store_true", help="say what would be measured and how long it takes, and end")
    parser.add_argument("--no-install", action="store_true", help="measure with what is there")
    parser.add_argument("--keep", action="store_true", help="leave the work folder")
    options = parser.parse_args(words)
    unknown = [name for name in options.systems if name not in SYSTEMS]
    if unknown:
        parser.error(f"--systems: {unknown[0]!r} is none of {', '.join(SYSTEMS)}")
    if (options.rounds is not None and options.rounds < 1) or (options.seconds is not None and options.seconds <= 0):
        parser.error("--rounds and --seconds: above 0")
    return options


def words_of(text):
    return [word for word in text.split(",") if word]


def chosen(options):
    """(cells, letters of targets) of the options; exits on words that name nothing."""
    if options.form == "targets":
        letters = "".join(options.only) or targets.LETTERS
        if set(letters) - set(targets.LETTERS):
            raise SystemExit(f"--only {letters}: the targets are {', '.join(targets.LETTERS)}")
        return targets.cells(letters, options.rounds or targets.PAIRS, options.seconds or targets.SECONDS), letters
    cells = FORMS[options.form]()
    try:
        cells = plan.selected(cells, options.only)
    except ValueError as error:
        raise SystemExit(f"--only: {error}") from None
    if not cells:
        raise SystemExit("--only: no cell has all of these")
    changed = {name: getattr(options, name) for name in ("rounds", "seconds") if getattr(options, name) is not None}
    return [dataclasses.replace(cell, **changed) for cell in cells], ""


def expected_seconds(cells, letters, options, found):
    able = {name: system(None) for name, system in SYSTEMS.items() if name in options.systems}
    total = plan.expected_seconds(cells, options.systems, found.done() if found else frozenset(), lambda name, cell: not able[name].cannot(cell),
                                  lambda name, cells: able[name].sets(cells))
    if options.form in ("short", "long"):
        total += checks.expected_seconds()
    if letters:
        total += targets.expected_seconds(letters, options.rounds or targets.PAIRS, options.seconds or targets.SECONDS)
    return total


def results(options):
    """The records of this run: new ones, or those of a run that goes on with the options that it had."""
    folder = options.resume or options.out
    if options.resume:
        if not (folder / "records.jsonl").exists():
            raise SystemExit(f"--resume: {folder} has no records.jsonl")
        found = records.Records(folder / "records.jsonl")
        for about in found.of_kind("about"):
            for name in OPTIONS_THAT_STAY:
                setattr(options, name, about["options"][name])
        return folder, found
    folder = folder or install.target_folder() / "side-by-side" / f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{options.form}"
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "records.jsonl").exists():
        raise SystemExit(f"{folder} has results already: give --resume to go on with them")
    return folder, records.Records(folder / "records.jsonl")


def about(lab, options, systems):
    return {
        "kind": "about", "title": "Forebay beside its peers", "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "form": options.form, "machine": lab.machine(),
        "systems": [{"name": system.name, "version": system.version(), "settings": system.settings, "notes": list(system.notes)}
                    for system in systems.values()],
        "method": METHOD, "options": {name: getattr(options, name) for name in OPTIONS_THAT_STAY},
    }


def report(lab, folder):
    """The page and the tables, made by the generator's own verb."""
    command = [lab.binaries / "forebay-bench", "report", "--out", folder / "page.html", "--markdown", folder / "tables.md",
               folder / "records.jsonl"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode == 0:
        print(f"results: {folder}/page.html, tables.md, records.jsonl")
    else:
        print(f"results: {folder}/records.jsonl; no page: {done.stdout.strip()[-300:]}", file=sys.stderr)
    return done.returncode


def interrupted(number, _):
    raise SystemExit(128 + number)


def main():
    options = arguments()
    if options.plan:
        cells, letters = chosen(options)
        for cell in cells:
            print(f"{cell}: {cell.rounds} rounds of {cell.seconds:g} s")
        print(f"{len(cells)} cells{', targets ' + letters if letters else ''}: about {expected_seconds(cells, letters, options, None) / 60:.0f} minutes")
        return 0
    if os.cpu_count() < 2:
        raise SystemExit("needs two CPUs: one for the server, one for the generator")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    cells, letters = chosen(options)
    folder, found = results(options)
    if options.resume:
        cells, letters = chosen(options)
    install.packages(options.systems, options.no_install)
    binaries, forebay = install.binaries()
    return measure(options, cells, letters, folder, found, binaries, forebay)


def measure(options, cells, letters, folder, found, binaries, forebay):
    seconds = expected_seconds(cells, letters, options, found)
    progress = Progress(seconds)
    print(f"{len(cells)} cells, {len(options.systems)} systems: about {seconds / 60:.0f} minutes; results in {folder}", flush=True)
    lab = Lab(binaries, forebay, folder, options.work, options.keep)
    try:
        missing = {name: install.cannot_have(name) for name in options.systems}
        systems = {name: SYSTEMS[name](lab) for name in options.systems if not missing[name]}
        for name, reason in missing.items():
            if reason:
                progress.say(f"{name} is left out: {reason}")
                lab.notes.append(f"{name} was left out: {reason}")
        check_space(lab, cells, systems)
        if not found.of_kind("about"):
            found.append(**about(lab, options, systems))
        Rounds(lab, systems, found, progress).run(cells)
        if options.form in ("short", "long"):
            checks.Checks(lab, found, progress).run()
        if letters:
            conclude(lab, options, letters, found, systems, progress)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        lab.close()
    return report(lab, folder)


def conclude(lab, options, letters, found, systems, progress):
    """The experiments, and the verdicts over the cells. Those over cells are taken anew by a run that goes on."""
    experiments = targets.Experiments(lab, options.rounds or targets.PAIRS, options.seconds or targets.SECONDS, progress)
    have = {record["name"] for record in found.of_kind("target")}
    for verdict in targets.judge_cells(found, list(systems), letters):
        if verdict["name"] not in have:
            found.append(**verdict)
        targets.show(verdict, progress)
    experiments.run(letters, found)


def check_space(lab, cells, systems):
    """Ends the program where what is read from disk would not fit: a quota for each system that has such a cell, all at once."""
    on_disk = [cell for cell in cells if cell.workload == "hit-disk"]
    names = [name for name, system in systems.items()
             if any(not system.cannot(cell) and (cell.only is None or name in cell.only) for cell in on_disk)]
    free = shutil.disk_usage(lab.folder).free
    needed = plan.DISK_QUOTA_BYTES * len(names)
    if free < needed:
        raise SystemExit(f"{lab.folder.parent} has {free / plan.GIB:.1f} GiB free, and {needed / plan.GIB:.1f} GiB are needed, "
                         f"for the caches on disk of {', '.join(names)}: name fewer with --systems, "
                         "leave hits on disk out with --only (hit-ram, miss, put), or give --work a folder on a larger disk")
