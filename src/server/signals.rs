//! Signals: SIGTERM and SIGINT stop, a second one stops at once, SIGHUP reloads, SIGXFSZ is ignored.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io;

/// Exit code when a second signal cuts an orderly stop short.
const EXIT_INTERRUPTED: i32 = 1;

/// Makes a file size limit an error of the write that meets it, instead of the end of the process.
/// To be called before the first write.
pub fn ignore_file_size_limit() {
    // SAFETY: no handler is installed; ignoring a signal touches no memory of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Waits until the server is told to stop, reloading whenever it is told to. After it returns, a
/// further signal ends the process at once.
pub fn wait(mut reload: impl FnMut()) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    for signal in signals.forever() {
        match signal {
            SIGHUP => reload(),
            _ => break,
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
