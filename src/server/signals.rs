//! Signals: SIGTERM and SIGINT stop, a second one stops at once, SIGHUP reloads.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use std::io;

/// Exit code when a second signal cuts an orderly stop short.
const EXIT_INTERRUPTED: i32 = 1;

/// Waits until the server is told to stop, reloading whenever it is told to. After it returns, a
/// further signal ends the process at once.
pub fn wait(mut reload: impl FnMut()) -> io::Result<()> {
    // SIGXFSZ is only taken, not acted on: a file size limit must be an error of the write that
    // meets it, not the death of the process.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGXFSZ])?;
    for signal in signals.forever() {
        match signal {
            SIGHUP => reload(),
            SIGTERM | SIGINT => break,
            _ => log::warn!("a write met the file size limit of this process"),
        }
    }
    log::info!("stopping");
    std::thread::spawn(move || {
        if signals
            .forever()
            .any(|signal| signal == SIGTERM || signal == SIGINT)
        {
            log::warn!("stopped at once by a second signal");
            std::process::exit(EXIT_INTERRUPTED);
        }
    });
    Ok(())
}
