//! `forebay drain`, `flush` and `dirty`, and the control paths that they use, from outside: against a
//! proxy whose store goes away, refuses, and is changed by others.

mod backlog;
#[path = "../common/mod.rs"]
mod common;
mod refusals;
mod store;

use common::{OPERATOR, Proxy};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// What a command left.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    output: String,
    error: String,
}

impl Said {
    fn of(output: Output) -> Said {
        Said {
            code: output.status.code(),
            output: String::from_utf8(output.stdout).expect("text"),
            error: String::from_utf8(output.stderr).expect("text"),
        }
    }

    /// Asserts the exit code and that a part of what it says is there.
    #[track_caller]
    fn is(self, code: i32, part: &str) -> Said {
        assert_eq!(self.code, Some(code), "{self:?}");
        let said = if code == 0 { &self.output } else { &self.error };
        assert!(said.contains(part), "{part:?} is not in {self:?}");
        if code != 0 {
            let last = self.error.lines().last().unwrap_or_default();
            assert!(last.starts_with("forebay: "), "{self:?}");
        }
        self
    }
}

fn forebay(folder: &Path, words: &[&str]) -> Command {
    let binary = std::env::var("FOREBAY_TEST_BINARY")
        .unwrap_or_else(|_| env!("CARGO_BIN_EXE_forebay").to_owned());
    let mut command = Command::new(binary);
    command
        .args(words)
        .env("HOME", folder)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A command about this proxy, as its operator.
fn operate_command(proxy: &Proxy, words: &[&str]) -> Command {
    let url = format!("http://{}", proxy.address);
    let words = [words, &["--url", &url, "--token", OPERATOR]].concat();
    forebay(proxy.folder(), &words)
}

fn operate(proxy: &Proxy, words: &[&str]) -> Said {
    let mut command = operate_command(proxy, words);
    Said::of(command.output().expect("the command runs"))
}
