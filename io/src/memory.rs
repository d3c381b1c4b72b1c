//! How much memory this process may use: the machine's, or less if a control group says so.
//!
//! This file only reads; it never sets a limit.

use std::io;
use std::path::{Path, PathBuf};

/// Where control groups are mounted.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// What bounds the memory of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// Bytes.
    pub bytes: u64,
    /// The file that says so; `None` when it is all that the machine has.
    pub control_group: Option<PathBuf>,
}

/// The least of the machine's memory and the limits of the process's control groups, from its own
/// up to the root.
///
/// # Errors
/// When the system does not tell how much memory there is.
pub fn limit() -> io::Result<MemoryLimit> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    Ok(limit_of(machine_bytes()?, &groups, read))
}

fn machine_bytes() -> io::Result<u64> {
    // SAFETY: a query of two integers; -1 means that the answer is not known.
    let (pages, page) = unsafe {
        (
            libc::sysconf(libc::_SC_PHYS_PAGES),
            libc::sysconf(libc::_SC_PAGESIZE),
        )
    };
    if pages <= 0 || page <= 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(pages as u64 * page as u64)
}

/// `groups` is what `/proc/self/cgroup` holds: `hierarchy:controllers:path` lines.
fn limit_of(
    machine_bytes: u64,
    groups: &str,
    read: impl Fn(&Path) -> Option<String>,
) -> MemoryLimit {
    let mut least = MemoryLimit {
        bytes: machine_bytes,
        control_group: None,
    };
    for file in limit_files(groups) {
        // `max`, or in version 1 a number beyond any machine: no limit.
        let bytes = read(&file).and_then(|text| text.trim().parse::<u64>().ok());
        if let Some(bytes) = bytes.filter(|bytes| *bytes < least.bytes) {
            least = MemoryLimit {
                bytes,
                control_group: Some(file),
            };
        }
    }
    least
}

/// The files that may hold a limit: of the process's groups and all above them. In a container the
/// root of the mount is the container's own group.
fn limit_files(groups: &str) -> Vec<PathBuf> {
    let root = Path::new(CGROUP_ROOT);
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (base, name) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|one| one == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let group = base.join(path.trim_start_matches('/'));
        let within = group.ancestors().take_while(|at| at.starts_with(&base));
        files.extend(within.map(|at| at.join(name)));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: u64 = 16 << 30;

    fn limit_with(groups: &str, files: &[(&str, &str)]) -> MemoryLimit {
        limit_of(MACHINE, groups, |path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn the_least_limit_on_the_way_up_counts() {
        let groups = "0::/system.slice/forebay-proxy.service\n";
        let own = "/sys/fs/cgroup/system.slice/forebay-proxy.service/memory.max";
        let slice = "/sys/fs/cgroup/system.slice/memory.max";
        assert_eq!(limit_with(groups, &[]).control_group, None);
        assert_eq!(limit_with(groups, &[(own, "max\n")]).bytes, MACHINE);
        let limit = limit_with(groups, &[(own, "4294967296\n"), (slice, "2147483648\n")]);
        assert_eq!(limit.bytes, 2 << 30);
        assert_eq!(limit.control_group, Some(PathBuf::from(slice)));
        let beyond = limit_with(groups, &[(own, "9223372036854771712\n")]);
        assert_eq!((beyond.bytes, beyond.control_group), (MACHINE, None));
    }

    #[test]
    fn both_versions_of_control_groups_are_read() {
        let groups = "5:cpu,cpuacct:/other\n4:memory:/docker/1\nnonsense\n";
        let file = "/sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes";
        assert_eq!(limit_with(groups, &[(file, "1048576")]).bytes, 1 << 20);
        let container = "/sys/fs/cgroup/memory.max";
        assert_eq!(limit_with("0::/\n", &[(container, "4096")]).bytes, 4096);
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(limit().expect("a limit").bytes > 64 << 20);
    }
}
