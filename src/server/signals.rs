//! Signals: SIGTERM and SIGINT stop, a second one stops at once, SIGHUP reloads, SIGXFSZ is ignored.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// Exit code when a second signal cuts an orderly stop short.
const EXIT_INTERRUPTED: i32 = 1;

/// Why the main thread wakes before the server stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// SIGHUP: the settings are to be read again.
    Reload,
    /// Nothing came for a while: a time to look around.
    Idle,
}

/// Makes a file size limit an error of the write that meets it, instead of the end of the process.
/// To be called before the first write.
pub fn ignore_file_size_limit() {
    // SAFETY: no handler is installed; ignoring a signal touches no memory of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Waits until the server is told to stop, waking for each SIGHUP and whenever nothing came for
/// `idle`. After it returns, a further signal ends the process at once.
pub fn wait(idle: Duration, mut wake: impl FnMut(Wake)) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let (sender, received) = mpsc::channel();
    std::thread::Builder::new()
        .name("forebay-signals".into())
        .spawn(move || {
            let mut stopping = false;
            for signal in signals.forever() {
                if signal != SIGHUP && stopping {
                    log::warn!("stopped at once by a second signal");
                    std::process::exit(EXIT_INTERRUPTED);
                }
                stopping |= signal != SIGHUP;
                // Nobody listens any more once the server stops.
                let _ = sender.send(signal);
            }
        })?;
    loop {
        match received.recv_timeout(idle) {
            Ok(SIGHUP) => wake(Wake::Reload),
            Err(RecvTimeoutError::Timeout) => wake(Wake::Idle),
            Ok(_) | Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    log::info!("stopping");
    Ok(())
}
