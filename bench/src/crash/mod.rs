//! Crashes of the real server: owns what is needed to prove that nothing acknowledged is lost by one.
//!
//! - [`ledger`]: what clients sent and what was acknowledged, in a file that is synced before a client goes on; and the
//!   account of it, which says what each key may hold.
//! - [`client`]: one blocking HTTP connection.
//! - [`clients`]: the load, and reading everything back.
//! - [`server`]: the server's process, its folders and its settings.
//! - [`kill_loop`]: rounds of start, read back, load, SIGKILL.
//!
//! Nothing here excuses the server: an answer that was lost leaves two possible contents, an acknowledgement exactly one,
//! and whatever else is read back is a loss. Nothing here measures time.

pub mod client;
pub mod clients;
pub mod kill_loop;
pub mod ledger;
pub mod server;

/// Why a proof could not be carried out. A loss is none: it is a finding.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct CrashError {
    /// What was tried.
    pub what: String,
    /// What came of it.
    pub why: String,
}

impl CrashError {
    /// An error of this text.
    pub fn new(what: impl Into<String>, why: impl ToString) -> Self {
        Self {
            what: what.into(),
            why: why.to_string(),
        }
    }
}
