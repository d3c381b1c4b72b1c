//! What the machine says about a run: owns reading `/proc` for CPU time, memory and device reads. Interprets nothing.

use std::{fs, io};

/// Clock ticks in a second as `/proc` counts them: fixed by the kernel's interface on every Linux that we run on.
const TICKS_PER_S: f64 = 100.0;

/// Bytes in a sector as `/proc/diskstats` counts them, whatever the device's own sectors are.
const SECTOR_BYTES: u64 = 512;

/// Bytes in a page as `/proc/PID/statm` counts them on x86-64 and most arm64 systems.
const PAGE_BYTES: u64 = 4096;

/// Which processes and device are watched.
#[derive(Debug)]
pub(super) struct Machine {
    server_pids: Vec<u32>,
    /// The one CPU that the servers may run on, if that is so.
    server_cpu: Option<usize>,
    device: Option<String>,
}

/// CPU time since a process's start, and its memory now.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct ProcessUsage {
    pub(super) user_s: f64,
    pub(super) system_s: f64,
    pub(super) rss_bytes: u64,
}

/// What one CPU, or all, did since the machine started, interrupts and other processes included.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct CpuTime {
    /// Stolen time too: there was work.
    busy_s: f64,
    idle_s: f64,
    /// Time in which there was work and a hypervisor ran something else.
    stolen_s: f64,
}

impl CpuTime {
    /// The share of the time in which it was busy.
    pub(super) fn busy_share(&self) -> f64 {
        self.busy_s / (self.busy_s + self.idle_s)
    }

    /// The share of the time that was stolen; 0 of no time.
    pub(super) fn stolen_share(&self) -> f64 {
        let all_s = self.busy_s + self.idle_s;
        if all_s > 0.0 {
            self.stolen_s / all_s
        } else {
            0.0
        }
    }

    fn since(&self, earlier: &Self) -> Self {
        Self {
            busy_s: self.busy_s - earlier.busy_s,
            idle_s: self.idle_s - earlier.idle_s,
            stolen_s: self.stolen_s - earlier.stolen_s,
        }
    }
}

/// What went over a device, whoever wanted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct DeviceBytes {
    pub(super) read: u64,
    pub(super) written: u64,
}

/// All counters at one moment.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Usage {
    pub(super) own_cpu_s: f64,
    pub(super) server: Option<ProcessUsage>,
    /// Of the one CPU that the servers may run on.
    pub(super) server_cpu: Option<CpuTime>,
    /// Of all CPUs.
    pub(super) machine: CpuTime,
    pub(super) device: DeviceBytes,
}

impl Usage {
    /// What was used since `earlier`; memory is as it is now.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let server = self
            .server
            .zip(earlier.server)
            .map(|(now, then)| ProcessUsage {
                user_s: now.user_s - then.user_s,
                system_s: now.system_s - then.system_s,
                rss_bytes: now.rss_bytes,
            });
        Self {
            own_cpu_s: self.own_cpu_s - earlier.own_cpu_s,
            server,
            server_cpu: self
                .server_cpu
                .zip(earlier.server_cpu)
                .map(|(now, then)| now.since(&then)),
            machine: self.machine.since(&earlier.machine),
            device: DeviceBytes {
                read: self.device.read.saturating_sub(earlier.device.read),
                written: self.device.written.saturating_sub(earlier.device.written),
            },
        }
    }
}

impl Machine {
    /// Fails at once if a process or the device is not there.
    pub(super) fn new(server_pids: &[u32], device: Option<&str>) -> Result<Self, String> {
        let machine = Self {
            server_pids: server_pids.to_vec(),
            server_cpu: only_cpu(server_pids)?,
            device: device.map(str::to_owned),
        };
        machine.usage()?;
        Ok(machine)
    }

    pub(super) fn has_device(&self) -> bool {
        self.device.is_some()
    }

    pub(super) fn usage(&self) -> Result<Usage, String> {
        let own = process_usage("self")?;
        let mut server = ProcessUsage::default();
        for pid in &self.server_pids {
            let usage = process_usage(&pid.to_string())?;
            server.user_s += usage.user_s;
            server.system_s += usage.system_s;
            server.rss_bytes += usage.rss_bytes;
        }
        let device = self.device.as_deref().map(device_bytes).transpose()?;
        Ok(Usage {
            own_cpu_s: own.user_s + own.system_s,
            server: (!self.server_pids.is_empty()).then_some(server),
            server_cpu: self.server_cpu.map(|cpu| cpu_time(Some(cpu))).transpose()?,
            machine: cpu_time(None)?,
            device: device.unwrap_or_default(),
        })
    }
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

fn process_usage(pid: &str) -> Result<ProcessUsage, String> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("the server's process {pid} is not there, or has ended"),
        _ => format!("{path}: {error}"),
    })?;
    let (user_s, system_s) = parse_cpu_s(&stat)
        .ok_or_else(|| format!("{path}: not in the form that this program knows"))?;
    let path = format!("/proc/{pid}/statm");
    let pages = read(&path)?
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    let pages = pages.ok_or_else(|| format!("{path}: not in the form that this program knows"))?;
    Ok(ProcessUsage {
        user_s,
        system_s,
        rss_bytes: pages * PAGE_BYTES,
    })
}

/// User and system time, all threads included. The name before them may hold spaces and brackets.
fn parse_cpu_s(stat: &str) -> Option<(f64, f64)> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace().skip(11);
    let mut next = || Some(fields.next()?.parse::<f64>().ok()? / TICKS_PER_S);
    Some((next()?, next()?))
}

/// The CPU that all of the processes are pinned to, if it is one and the same.
fn only_cpu(pids: &[u32]) -> Result<Option<usize>, String> {
    let mut cpus = Vec::new();
    for pid in pids {
        let status = read(&format!("/proc/{pid}/status"))?;
        cpus.push(parse_only_cpu(&status));
    }
    cpus.dedup();
    Ok(match cpus[..] {
        [only] => only,
        _ => None,
    })
}

fn parse_only_cpu(status: &str) -> Option<usize> {
    let mut lines = status.lines();
    let list = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    list.trim().parse().ok()
}

/// Of one CPU, or of all.
fn cpu_time(cpu: Option<usize>) -> Result<CpuTime, String> {
    let path = "/proc/stat";
    let name = cpu_name(cpu);
    parse_cpu_time(&read(path)?, &name).ok_or_else(|| format!("{path}: nothing of {name}"))
}

fn cpu_name(cpu: Option<usize>) -> String {
    cpu.map_or("cpu".into(), |cpu| format!("cpu{cpu}"))
}

/// Of the columns user, nice, system, idle, iowait, irq, softirq and steal, the fourth and the fifth
/// are idle.
fn parse_cpu_time(stat: &str, name: &str) -> Option<CpuTime> {
    let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
    let (_, line) = lines.find(|(first, _)| *first == name)?;
    let mut time = CpuTime::default();
    for (column, ticks) in line.split_whitespace().take(8).enumerate() {
        let seconds = ticks.parse::<f64>().ok()? / TICKS_PER_S;
        match column {
            3 | 4 => time.idle_s += seconds,
            _ => time.busy_s += seconds,
        }
        if column == 7 {
            time.stolen_s = seconds;
        }
    }
    Some(time)
}

fn device_bytes(device: &str) -> Result<DeviceBytes, String> {
    let path = "/proc/diskstats";
    let text = read(path)?;
    parse_device_bytes(&text, device).ok_or_else(|| format!("{path}: no device {device:?}"))
}

/// Of the columns after the name, the third counts sectors read and the seventh sectors written.
fn parse_device_bytes(diskstats: &str, device: &str) -> Option<DeviceBytes> {
    let mut lines = diskstats
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = lines.find(|fields| fields.get(2) == Some(&device))?;
    let bytes = |column: usize| Some(line.get(column)?.parse::<u64>().ok()? * SECTOR_BYTES);
    Some(DeviceBytes {
        read: bytes(5)?,
        written: bytes(9)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_understood() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194304 5 0 0 0 250 50 0 0 20 0 1 0 99 1000 10";
        assert_eq!(parse_cpu_s(stat), Some((2.5, 0.5)));
        assert_eq!(parse_cpu_s("7 (a"), None);
        let cpus = "cpu  25 25 25 25 25 25 25 25 0 0\ncpu0 100 0 50 300 100 10 20 20 7 7\ncpu1 1 1 1 1 1 1 1 1\n";
        let time = parse_cpu_time(cpus, &cpu_name(Some(0))).unwrap();
        assert_eq!((time.busy_s, time.idle_s, time.stolen_s), (2.0, 4.0, 0.2));
        let all = parse_cpu_time(cpus, &cpu_name(None)).unwrap();
        assert_eq!((all.busy_s, all.stolen_share()), (1.5, 0.125));
        assert_eq!(CpuTime::default().stolen_share(), 0.0);
        assert_eq!(parse_cpu_time(cpus, "cpu7"), None);
        assert_eq!(
            parse_only_cpu("Cpus_allowed:\t1\nCpus_allowed_list:\t0\n"),
            Some(0)
        );
        assert_eq!(parse_only_cpu("Cpus_allowed_list:\t0-1\n"), None);
        let disks = " 254 1 vda1 9 9 1 9\n 254 0 vda 100 2 4096 33 5 6 7 8\n";
        let bytes = DeviceBytes {
            read: 4096 * SECTOR_BYTES,
            written: 7 * SECTOR_BYTES,
        };
        assert_eq!(parse_device_bytes(disks, "vda"), Some(bytes));
        assert_eq!(parse_device_bytes(disks, "sda"), None);
    }

    #[test]
    fn own_work_shows_and_a_missing_process_is_refused() {
        let machine = Machine::new(&[std::process::id()], None).unwrap();
        let before = machine.usage().unwrap();
        let begun = std::time::Instant::now();
        while begun.elapsed() < std::time::Duration::from_millis(100) {
            std::hint::black_box(crate::content::mix(1));
        }
        let used = machine.usage().unwrap().since(&before);
        assert!(used.own_cpu_s > 0.0, "{used:?}");
        assert!(used.server.unwrap().rss_bytes > 100_000);
        assert!(Machine::new(&[u32::MAX], None).is_err());
        assert!(Machine::new(&[], Some("no-such-device")).is_err());
    }
}
