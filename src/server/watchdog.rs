//! Reports a core that stopped ticking, from outside the executors. It never acts on it.

use super::ServerState;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often cores tick.
pub const TICK: Duration = Duration::from_millis(200);

/// A core that does not tick for this long is reported. Far above what any task may take without
/// yielding, also on a machine that is short of CPU.
const STALL: Duration = Duration::from_secs(3);

/// Starts the watching thread; it ends with the process.
pub fn start(state: Arc<ServerState>) -> io::Result<()> {
    let watch = move || {
        let mut last: Vec<u64> = vec![0; state.http.len()];
        let mut stalled = vec![false; state.http.len()];
        loop {
            std::thread::sleep(STALL);
            for (core, stats) in state.http.iter().enumerate() {
                let ticks = stats.ticks.load(Ordering::Relaxed);
                if ticks == last[core] && !stalled[core] {
                    log::error!("core {core} has not run its tasks for {STALL:?}");
                } else if ticks != last[core] && stalled[core] {
                    log::warn!("core {core} runs again");
                }
                stalled[core] = ticks == last[core];
                last[core] = ticks;
            }
        }
    };
    std::thread::Builder::new()
        .name("forebay-watchdog".into())
        .spawn(watch)
        .map(drop)
}
