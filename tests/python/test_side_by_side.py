"""The plan, the records, the verdicts and the cleaning up of scripts/bench-side-by-side. Measures nothing."""

import contextlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import unittest
import unittest.mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bench"))
from side_by_side import checks, judge, lab, left, main, plan, records, rounds  # noqa: E402

ONE_SECOND = {"rounds": 3, "seconds": 1.0}


def cell(workload="hit-ram", size="1MiB", connections=16, tls=True, **more):
    return plan.Cell(workload, size, connections, tls, **{**ONE_SECOND, **more})


def report(cpu, gib_per_s=1.0):
    return {"server_cpu_s_per_gib": cpu, "gib_per_s": gib_per_s, "requests_per_s": 10.0}


class LeftBehind(unittest.TestCase):
    """What a killed run leaves is ended by the next; what is in use, or somebody else's, is let alone."""

    def setUp(self):
        work = tempfile.TemporaryDirectory()
        self.addCleanup(work.cleanup)
        self.work = pathlib.Path(work.name)

    def run_of(self, name):
        """A folder as a run makes it, with a process of its own that has a child."""
        folder = self.work / (left.PREFIX + name)
        folder.mkdir()
        held = left.hold(folder)
        process = subprocess.Popen(["sh", "-c", "sleep 100 & wait"], start_new_session=True)
        self.addCleanup(self.end, process)
        left.started(folder, process.pid)
        return folder, held, process

    def end(self, process):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def test_a_killed_run_is_cleaned_away_with_all_its_processes(self):
        folder, held, process = self.run_of("killed")
        left.fence(folder, ["touch", str(self.work / "unfenced")])
        held.close()
        with contextlib.redirect_stdout(io.StringIO()):
            left.clean(self.work)
        self.assertFalse(folder.exists())
        self.assertEqual(process.wait(10), -signal.SIGKILL)
        self.assertTrue((self.work / "unfenced").exists())

    def test_a_run_that_is_alive_is_let_alone(self):
        folder, held, process = self.run_of("alive")
        left.clean(self.work)
        self.assertTrue(folder.exists())
        self.assertIsNone(process.poll())
        held.close()

    @unittest.skipUnless(os.getuid() == 0, "only root can give a folder away")
    def test_nothing_is_believed_that_somebody_else_wrote(self):
        folder, held, process = self.run_of("foreign")
        left.fence(folder, ["touch", str(self.work / "taken-in")])
        held.close()
        os.chown(folder, 65534, 65534)
        left.clean(self.work)
        self.assertTrue(folder.exists())
        self.assertIsNone(process.poll())
        self.assertFalse((self.work / "taken-in").exists())

    def test_a_number_that_is_another_process_by_now_is_not_ended(self):
        folder, held, process = self.run_of("reused")
        (folder / left.STARTED).write_text(f"{process.pid} 1\n")
        held.close()
        with contextlib.redirect_stdout(io.StringIO()):
            left.clean(self.work)
        self.assertFalse(folder.exists())
        self.assertIsNone(process.poll())


class Fails(rounds.Rounds):
    """Rounds of a system that fails where it is told to. It notes what was tried and how often it was started."""

    def __init__(self, found, fails, ends=()):
        system = unittest.mock.Mock(group=None, servers=[], **{"cannot.return_value": None})
        super().__init__(None, {"x": system}, found, unittest.mock.Mock())
        self.fails, self.ends, self.tried, self.starts, self.ended = fails, ends, [], 0, False

    def _ready(self, name, group, cells):
        self.starts, self.ended = self.starts + 1, False

    def _has_ended(self, name):
        return self.ended

    def _measure(self, system, group, cell, number):
        self.tried.append((cell.connections, number))
        if cell.connections in self.fails:
            self.ended = cell.connections in self.ends
            raise lab.Failed("out of memory")
        return report(1.0)


class Failing(unittest.TestCase):
    def run_of(self, cells, fails, ends=()):
        with tempfile.TemporaryDirectory() as folder:
            found = records.Records(pathlib.Path(folder) / "records.jsonl")
            run = Fails(found, fails, ends)
            run.run(cells)
        return run, {(each["row"]["connections"], each["round"]): each.get("failed") for each in found.of_kind("run")}

    def test_a_cell_that_a_system_cannot_bear_costs_it_no_other(self):
        run, found = self.run_of([cell(connections=1024), cell(connections=64)], {1024})
        self.assertEqual(run.tried, [(64, 1), (64, 2), (64, 3), (1024, 1)])
        self.assertEqual(run.starts, 1)
        self.assertEqual(found[1024, 1], "out of memory")
        self.assertEqual(found[1024, 3], "not tried again after round 1: out of memory")
        self.assertEqual([found[64, number] for number in (1, 2, 3)], [None] * 3)

    def test_a_system_is_started_anew_for_what_is_left_of_the_group(self):
        run, found = self.run_of([cell(connections=16), cell(connections=64)], {16}, ends={16})
        self.assertEqual(run.tried, [(16, 1), (64, 1), (64, 2), (64, 3)])
        self.assertEqual(run.starts, 2)
        self.assertTrue(all(found[16, number] for number in (1, 2, 3)))

    def test_a_failure_that_is_not_the_cells_fault_is_tried_again_but_not_for_ever(self):
        run, found = self.run_of([cell(connections=16, rounds=9)], {16})
        self.assertEqual(len(run.tried), rounds.RESTARTS_MAX + 1)
        self.assertEqual(found[16, 9], f"it failed {rounds.RESTARTS_MAX + 1} times in this group")


class Stolen(unittest.TestCase):
    def test_a_run_that_the_hypervisor_cut_into_is_made_again(self):
        shares = [0.5, 0.02, 0.3]
        steady = rounds.Steady()
        self.assertEqual(steady.run(lambda: {"stolen_share": shares.pop(0)}), {"stolen_share": 0.02})
        self.assertEqual(shares, [0.3])

    def test_but_not_for_ever(self):
        steady, tried = rounds.Steady(), []

        def measure():
            tried.append(1)
            return {"stolen_share": 0.5}

        self.assertEqual(steady.run(measure)["stolen_share"], 0.5)
        self.assertEqual(len(tried), plan.STOLEN_TRIES)
        steady.seconds_left = 0
        steady.run(measure)
        self.assertEqual(len(tried), plan.STOLEN_TRIES + 1)


class CrossChecked(unittest.TestCase):
    def test_another_generator_is_no_report_and_is_set_beside_ours(self):
        check = checks.Checks(unittest.mock.MagicMock(), [], unittest.mock.MagicMock())
        with unittest.mock.patch.multiple(checks, Forebay=unittest.mock.MagicMock()), \
                unittest.mock.patch.multiple(checks.Checks, _theirs=lambda *_: (3.0, 0.5), _ours=lambda *_: (2.0, 0.25)):
            found = check._check("wrk", tls=False)
        self.assertEqual((found["a"], found["b"], found["ratio"], found["cpu_a"], found["cpu_b"]), (3.0, 2.0, 1.5, 0.5, 0.25))


class Planned(unittest.TestCase):
    def test_the_long_form_has_every_cell_of_the_matrix_once(self):
        rows = [json.dumps(cell.row(), sort_keys=True) for cell in plan.long_form() if cell.workload != "put"]
        self.assertEqual(len(rows), 3 * 5 * 5 * 2)
        self.assertEqual(len(set(rows)), len(rows))

    def test_forms_keep_their_time_with_all_systems(self):
        for form, minutes in (("short", 10), ("long", 55)):
            options = main.arguments(["--form", form])
            cells, letters = main.chosen(options)
            self.assertLess(main.expected_seconds(cells, letters, options, None), minutes * 60, form)

    def test_what_a_system_cannot_do_takes_no_time(self):
        options = main.arguments(["--form", "long", "--systems", "rclone", "--only", "hit-disk"])
        with_puts = main.arguments(["--form", "long", "--systems", "rclone"])
        self.assertLess(main.expected_seconds(*main.chosen(options), options, None), main.expected_seconds(*main.chosen(with_puts), with_puts, None))

    def test_expected_time_counts_each_run_and_each_start(self):
        cells = [cell("miss", connections=1)]
        run = cells[0].warmup_seconds() + 1.0 + plan.OVERHEAD_SECONDS
        self.assertAlmostEqual(plan.expected_seconds(cells, ["x", "y"]), 6 * run + 2 * plan.START_SECONDS)

    def test_what_is_done_takes_no_time(self):
        cells = [cell("miss")]
        whole = plan.expected_seconds(cells, ["x", "y"])
        done = {records.key("x", cells[0].row(), number) for number in (1, 2, 3)}
        self.assertAlmostEqual(plan.expected_seconds(cells, ["x", "y"], done), whole / 2)

    def test_the_order_of_systems_is_turned_round_every_other_round(self):
        turns = list(plan.turns([cell()], ["x", "y", "z"]))
        self.assertEqual([name for _, _, _, name in turns], list("xyzzyxxyz"))
        self.assertEqual([position for _, position, _, _ in turns], [0, 1, 2] * 3)

    def test_what_a_system_may_not_survive_comes_last(self):
        heavy, light = cell(connections=1024), cell(connections=64)
        self.assertEqual([each.is_heavy() for each in (heavy, light, cell(size="8MiB", connections=16))], [True, False, False])
        order = [(each.connections, number) for number, _, each, _ in plan.turns([heavy, light], ["x"])]
        self.assertEqual(order, [(64, 1), (64, 2), (64, 3), (1024, 1), (1024, 2), (1024, 3)])

    def test_rounds_are_the_outer_loop_and_cells_end_when_theirs_do(self):
        few, many = cell(connections=1, rounds=1), cell(connections=64, rounds=2)
        turns = [(number, each.connections) for number, _, each, _ in plan.turns([few, many], ["x"])]
        self.assertEqual(turns, [(1, 1), (1, 64), (2, 64)])

    def test_a_cell_that_is_one_systems_only_is_not_run_by_others(self):
        turns = list(plan.turns([cell(only=("y",))], ["x", "y"]))
        self.assertEqual({name for _, _, _, name in turns}, {"y"})

    def test_only_takes_what_all_named_dimensions_allow(self):
        chosen = plan.selected(plan.long_form(), ["hit-ram", "hit-disk", "tls", "1MiB", "64"])
        self.assertEqual({each.workload for each in chosen}, {"hit-ram", "hit-disk"})
        self.assertTrue(all(each.tls and each.size == "1MiB" and each.connections == 64 for each in chosen))
        self.assertTrue(all(each.ranged for each in plan.selected(plan.long_form(), ["range"])))
        with self.assertRaisesRegex(ValueError, "hit-rum"):
            plan.selected(plan.long_form(), ["hit-rum"])

    def test_a_working_set_on_disk_is_six_times_the_memory_and_one_in_ram_fits(self):
        self.assertGreaterEqual(plan.Group("hit-disk", "8MiB", []).keys() * plan.SIZES["8MiB"], 6 * plan.MEMORY_BYTES)
        self.assertLess(plan.Group("hit-ram", "8MiB", []).set_bytes(), plan.RAM_TIER_BYTES)

    def test_on_disk_tls_and_plain_follow_each_other(self):
        group = plan.groups([cell("hit-disk", tls=tls, connections=n) for n in (1, 16) for tls in (True, False)])[0]
        self.assertEqual([[each.tls for each in phase] for phase in plan.phases(group)], [[True, True], [False, False]])


class Recorded(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name) / "records.jsonl"

    def test_what_was_run_is_known_to_who_goes_on(self):
        row = cell().row()
        records.Records(self.path).append(kind="run", system="x", row=row, round=2, report=report(1.0))
        again = records.Records(self.path)
        self.assertEqual(again.done(), {records.key("x", row, 2)})
        self.assertEqual(again.reports("x", **row), {2: report(1.0)})

    def test_a_line_that_was_cut_off_is_run_again_and_the_file_stays_whole(self):
        first = records.Records(self.path)
        for number in (1, 2):
            first.append(kind="run", system="x", row=cell().row(), round=number, report=report(1.0))
        self.path.write_bytes(self.path.read_bytes()[:-20])
        again = records.Records(self.path)
        self.assertEqual([key[2] for key in again.done()], [1])
        again.append(kind="run", system="x", row=cell().row(), round=2, report=report(1.0))
        self.assertEqual(len([json.loads(line) for line in self.path.read_text().splitlines()]), 2)

    def test_a_broken_line_is_told_with_its_number(self):
        self.path.write_text('{"kind": "about"}\nnonsense\n')
        with self.assertRaisesRegex(SystemExit, "records.jsonl:2"):
            records.Records(self.path)

    def test_a_failed_cell_is_no_report(self):
        found = records.Records(self.path)
        found.append(kind="run", system="x", row=cell().row(), round=1, failed="it ended")
        self.assertEqual(found.reports("x", **cell().row()), {})
        self.assertEqual(len(found.done()), 1)


class Judged(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.found = records.Records(pathlib.Path(folder.name) / "records.jsonl")

    def run_of(self, system, cpus, row):
        for number, value in enumerate(cpus, 1):
            self.found.append(kind="run", system=system, row=row, round=number, report=report(value))

    def judge(self, peer):
        court = judge.Judge(self.found, ["forebay", "slow", "fast"])
        return court.beside("n", judge.LOWER, 0.5, peer, cell().row(), judge.cpu, "how")

    def test_ratios_are_taken_pair_by_pair(self):
        self.run_of("forebay", [0.4, 0.9, 0.3], cell().row())
        self.run_of("slow", [1.0, 3.0, 1.0], cell().row())
        verdict = self.judge("slow")
        self.assertEqual([round(verdict[name], 6) for name in ("low", "value", "high")], [0.3, 0.3, 0.4])
        self.assertTrue(verdict["met"])

    def test_the_best_peer_is_the_one_that_is_ahead(self):
        self.run_of("forebay", [0.6], cell().row())
        self.run_of("slow", [2.0], cell().row())
        self.run_of("fast", [1.0], cell().row())
        verdict = self.judge("best peer")
        self.assertIn("fast", verdict["target"])
        self.assertFalse(verdict["met"])

    def test_without_runs_a_target_is_not_met_and_says_so(self):
        verdict = self.judge("best peer")
        self.assertEqual((verdict["value"], verdict["met"]), (None, False))
        self.assertIn("why", verdict)

    def test_a_floor_is_met_from_above(self):
        verdict = judge.verdict("n", judge.HIGHER, 0.85, "16 connections", [0.9, 0.8, 0.95], "how")
        self.assertTrue(verdict["met"])
        self.assertFalse(judge.verdict("n", judge.HIGHER, 0.85, "x", [0.8], "how")["met"])


if __name__ == "__main__":
    unittest.main()
