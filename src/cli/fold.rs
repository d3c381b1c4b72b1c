//! From what was typed to what `argh` reads: one spelling, no `=`, one clear line for each mistake.
//!
//! argh knows only `--disk-folder VALUE`. People also write `--diskFolder`, `--disk-folder=VALUE` and
//! `--sync=false`, and argh's own complaints run over several lines and repeat values. So this file
//! owns every usage error: what it lets pass, argh accepts. It works from the flags that argh itself
//! declares, so there is no second list of them. It reads no file and never prints; in particular it
//! never puts the value of a secret flag into an error.

use argh::{CommandInfoWithArgs, FlagInfo, FlagInfoKind};
use std::collections::BTreeSet;
use std::ffi::OsString;

/// Flags whose value is a secret, in argh's spelling.
pub const SECRET_FLAGS: [&str; 2] = ["--block-pass", "--token"];

/// Flags whose value may be left out, in argh's spelling. argh has no such thing, so it gets an empty
/// value, which nothing that is typed becomes.
const OPTIONAL_VALUE_FLAGS: [&str; 1] = ["--retry"];

/// Words that ask for help instead of running.
const HELP_WORDS: [&str; 3] = ["--help", "-h", "help"];

/// A word that is none of ours is a near miss of a flag within this many edits per
/// [`NEAR_MISS_LETTERS`] letters: one slip for each few letters typed.
const NEAR_MISS_EDITS: usize = 1;
/// See [`NEAR_MISS_EDITS`].
const NEAR_MISS_LETTERS: usize = 4;

/// A command line that cannot be understood: one line for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} (see `{command} --help`)")]
pub struct UsageError {
    message: String,
    /// The words of the command that was being read, for the hint at its help.
    command: String,
}

impl UsageError {
    /// An error in the words of `command`, `forebay init creds` for instance.
    pub fn new(command: impl Into<String>, message: impl Into<String>) -> Self {
        UsageError {
            message: message.into(),
            command: command.into(),
        }
    }
}

/// Folds the words after the program's name. The result holds the command's words, then flags in
/// argh's spelling, each followed by its value; with help asked for, the command's words and `--help`.
pub fn fold(words: &[OsString], grammar: &CommandInfoWithArgs) -> Result<Vec<String>, UsageError> {
    let mut folder = Folder {
        command: grammar,
        path: crate::cli::PROGRAM.to_owned(),
        folded: Vec::new(),
        seen: BTreeSet::new(),
        after_secret: None,
        help: false,
    };
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        folder.take(word, &mut rest)?;
    }
    folder.finish()
}

/// What a switch or option of the command is called in the reference's spelling: `--diskFolder`.
pub fn camel(kebab: &str) -> String {
    let name = kebab.trim_start_matches('-');
    let mut spelled = String::from("--");
    for (index, part) in name.split('-').enumerate() {
        let mut letters = part.chars();
        match letters.next() {
            // The reference writes `noSSL` but `sslCert`.
            Some(_) if index > 0 && part == "ssl" => spelled.push_str("SSL"),
            Some(first) if index > 0 => {
                spelled.push(first.to_ascii_uppercase());
                spelled.push_str(letters.as_str());
            }
            _ => spelled.push_str(part),
        }
    }
    spelled
}

/// Whether the next word can be the value of a flag that needs none: a value that begins with a dash
/// must be written behind `=`.
fn value_follows(rest: &std::slice::Iter<'_, OsString>) -> bool {
    let next = rest.as_slice().first();
    next.is_some_and(|word| !word.to_string_lossy().starts_with('-'))
}

/// The state of one folding.
struct Folder<'a> {
    /// The innermost command named so far.
    command: &'a CommandInfoWithArgs,
    /// Its words, with the program's name.
    path: String,
    folded: Vec<String>,
    /// Flags of `command` already given, in argh's spelling.
    seen: BTreeSet<&'static str>,
    /// The flag whose value the last word was, if that is a secret: what follows may be the rest of
    /// it, cut at a space.
    after_secret: Option<&'static str>,
    help: bool,
}

impl<'a> Folder<'a> {
    fn error(&self, message: impl Into<String>) -> UsageError {
        UsageError::new(self.path.clone(), message)
    }

    /// Reads one word, and the next one where it is the value of a flag.
    fn take(
        &mut self,
        word: &OsString,
        rest: &mut std::slice::Iter<'_, OsString>,
    ) -> Result<(), UsageError> {
        let text = word.to_string_lossy();
        let (name, inline) = match text.split_once('=') {
            Some((name, _)) => (name, true),
            None => (text.as_ref(), false),
        };
        if HELP_WORDS.contains(&text.as_ref()) {
            self.help = true;
            return Ok(());
        }
        if !name.starts_with('-') || name == "-" {
            return self.take_command(&text);
        }
        if self.help {
            // `forebay start --help --whatever` is a question; its other flags do not matter.
            return Ok(());
        }
        let flag = self.find(name).ok_or_else(|| self.unknown(name))?;
        if !self.seen.insert(flag.long) {
            return Err(self.error(format!("{name} is given twice; give it once")));
        }
        let inline_value = match (inline, word.to_str()) {
            (false, _) => None,
            (true, Some(text)) => text.split_once('=').map(|(_, value)| value.to_owned()),
            (true, None) => return Err(self.not_text(name)),
        };
        match flag.kind {
            FlagInfoKind::Switch => self.take_switch(flag, name, inline_value.as_deref()),
            FlagInfoKind::Option { .. } => self.take_option(flag, name, inline_value, rest),
        }
    }

    /// Reads a word that is no flag: the name of a command.
    fn take_command(&mut self, word: &str) -> Result<(), UsageError> {
        let command = self.command;
        if let Some(inner) = command.commands.iter().find(|inner| inner.name == word) {
            self.command = &inner.command;
            self.path.push(' ');
            self.path.push_str(word);
            self.folded.push(word.to_owned());
            self.seen.clear();
            return Ok(());
        }
        if command.commands.is_empty() {
            let shown = match self.after_secret {
                Some(flag) => format!("a word after {}", camel(flag)),
                None => format!("`{word}`"),
            };
            let hint = match (word, self.folded.last()) {
                ("true" | "false", Some(flag)) if self.after_secret.is_none() => {
                    format!("write {flag}={word}")
                }
                _ => "a value with spaces needs quotes".to_owned(),
            };
            return Err(self.error(format!("{shown} is not expected here; {hint}")));
        }
        let names: Vec<&str> = command.commands.iter().map(|inner| inner.name).collect();
        let guess = match nearest(word, names.iter().copied()) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("the commands are {}", names.join(", ")),
        };
        Err(self.error(format!("`{word}` is not a command; {guess}")))
    }

    fn take_switch(
        &mut self,
        flag: &FlagInfo<'_>,
        name: &str,
        value: Option<&str>,
    ) -> Result<(), UsageError> {
        self.after_secret = None;
        match value {
            None | Some("true") => self.folded.push(flag.long.to_owned()),
            Some("false") => {}
            Some(other) => {
                return Err(self.error(format!(
                    "{name}: `{other}` is neither true nor false; write {name}, {name}=true or \
                     {name}=false"
                )));
            }
        }
        Ok(())
    }

    fn take_option(
        &mut self,
        flag: &FlagInfo<'static>,
        name: &str,
        inline: Option<String>,
        rest: &mut std::slice::Iter<'_, OsString>,
    ) -> Result<(), UsageError> {
        let value = match inline {
            Some(value) => value,
            None if OPTIONAL_VALUE_FLAGS.contains(&flag.long) && !value_follows(rest) => {
                self.after_secret = None;
                self.folded.extend([flag.long.to_owned(), String::new()]);
                return Ok(());
            }
            None => self.next_value(name, rest)?,
        };
        if value.is_empty() {
            return Err(self.error(format!(
                "{name}: its value is empty; leave the flag out to get its default"
            )));
        }
        if value.contains('\0') {
            return Err(self.error(format!("{name}: its value holds a NUL byte")));
        }
        self.after_secret = SECRET_FLAGS.contains(&flag.long).then_some(flag.long);
        self.folded.push(flag.long.to_owned());
        self.folded.push(value);
        Ok(())
    }

    /// The word after a flag, as its value.
    fn next_value(
        &self,
        name: &str,
        rest: &mut std::slice::Iter<'_, OsString>,
    ) -> Result<String, UsageError> {
        let Some(word) = rest.next() else {
            return Err(self.error(format!("{name}: no value follows; write {name} VALUE")));
        };
        let value = word.to_str().ok_or_else(|| self.not_text(name))?;
        // `--diskFolder --sync` is a forgotten value far more often than a folder of that name.
        let flag_name = value.split_once('=').map_or(value, |(name, _)| name);
        if self.find(flag_name).is_some() || HELP_WORDS[..2].contains(&value) {
            return Err(self.error(format!(
                "{name}: no value follows, but the flag {flag_name}; if that is the value, write \
                 {name}={flag_name}"
            )));
        }
        Ok(value.to_owned())
    }

    fn not_text(&self, name: &str) -> UsageError {
        self.error(format!(
            "{name}: its value is not valid UTF-8; only UTF-8 is accepted"
        ))
    }

    /// The flag of the current command that `name` spells, in any of its spellings.
    fn find(&self, name: &str) -> Option<&'a FlagInfo<'static>> {
        self.command.flags.iter().find(|flag| {
            let short = flag.short.is_some_and(|short| name == format!("-{short}"));
            flag.long == name || camel(flag.long) == name || short
        })
    }

    fn unknown(&self, name: &str) -> UsageError {
        let longs = self.command.flags.iter().map(|flag| flag.long);
        let guess = nearest(name, longs).map(|long| {
            let typed_camel = name.chars().any(|letter| letter.is_ascii_uppercase());
            if typed_camel {
                camel(long)
            } else {
                long.to_owned()
            }
        });
        let command = &self.path;
        self.error(match guess {
            Some(guess) => format!("{name} is not a flag of `{command}`; did you mean {guess}?"),
            None => format!("{name} is not a flag of `{command}`"),
        })
    }

    fn finish(mut self) -> Result<Vec<String>, UsageError> {
        if self.help {
            self.folded.push("--help".to_owned());
            return Ok(self.folded);
        }
        let inner: Vec<&str> = self
            .command
            .commands
            .iter()
            .map(|inner| inner.name)
            .collect();
        if !inner.is_empty() && !self.seen.contains("--version") {
            return Err(self.error(format!(
                "no command given; one of {} is needed",
                inner.join(", ")
            )));
        }
        Ok(self.folded)
    }
}

/// The candidate that differs least from `word`, if it is near enough to be meant.
fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let typed = bare(word);
    let edits_max = NEAR_MISS_EDITS + typed.len() / NEAR_MISS_LETTERS;
    candidates
        .map(|candidate| (edits(&typed, &bare(candidate)), candidate))
        .filter(|(count, _)| *count <= edits_max)
        .min_by_key(|(count, _)| *count)
        .map(|(_, candidate)| candidate)
}

/// A name without what the spellings differ in.
fn bare(name: &str) -> Vec<char> {
    name.chars()
        .filter(|letter| *letter != '-' && *letter != '_')
        .map(|letter| letter.to_ascii_lowercase())
        .collect()
}

/// Letters to insert, delete or replace to make `target` out of `source`.
fn edits(source: &[char], target: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=target.len()).collect();
    for (index, letter) in source.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, wanted) in target.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != wanted);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[target.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Arguments;
    use argh::ArgsInfo;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStringExt;

    fn fold_words(words: &[&str]) -> Result<Vec<String>, String> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        fold(&words, &Arguments::get_args_info()).map_err(|error| error.to_string())
    }

    #[test]
    fn both_spellings_and_both_separators_fold_to_one() {
        let expected = Ok(vec![
            "start".to_owned(),
            "--disk-folder".to_owned(),
            "/nvme".to_owned(),
        ]);
        for words in [
            &["start", "--diskFolder", "/nvme"][..],
            &["start", "--diskFolder=/nvme"],
            &["start", "--disk-folder", "/nvme"],
            &["start", "--disk-folder=/nvme"],
        ] {
            assert_eq!(fold_words(words), expected, "{words:?}");
        }
    }

    #[test]
    fn every_flag_of_every_command_has_both_spellings() {
        fn walk(info: &CommandInfoWithArgs, path: &[&str], count: &mut usize) {
            for flag in info.flags.iter().filter(|flag| flag.long != "--help") {
                for name in [flag.long.to_owned(), camel(flag.long)] {
                    let mut words = path.to_vec();
                    words.push(&name);
                    let mut expected: Vec<String> = words.iter().map(|&w| w.to_owned()).collect();
                    *expected.last_mut().expect("a flag") = flag.long.to_owned();
                    if matches!(flag.kind, FlagInfoKind::Option { .. }) {
                        words.push("7");
                        expected.push("7".to_owned());
                    }
                    assert_eq!(fold_words(&words), Ok(expected));
                    *count += 1;
                }
            }
            for inner in &info.commands {
                let path = [path, &[inner.name]].concat();
                walk(&inner.command, &path, count);
            }
        }
        let mut count = 0;
        walk(&Arguments::get_args_info(), &[], &mut count);
        assert!(count > 60, "only {count} spellings were walked");
    }

    #[test]
    fn the_reference_spells_some_names_oddly() {
        assert_eq!(camel("--no-ssl"), "--noSSL");
        assert_eq!(camel("--ssl-cert"), "--sslCert");
        assert_eq!(camel("--max-bops"), "--maxBops");
        assert_eq!(camel("--db-mem-capacity"), "--dbMemCapacity");
    }

    #[test]
    fn only_the_first_equals_sign_separates() {
        let folded = fold_words(&["init", "systemd", "--startFlags=--diskQuota=5% --sync=true"]);
        assert_eq!(folded.expect("fold")[3], "--diskQuota=5% --sync=true");
        let folded = fold_words(&["start", "--block-pass==a=b="]).expect("fold");
        assert_eq!(folded[2], "=a=b=");
    }

    #[test]
    fn switches_take_true_and_false_and_nothing_else() {
        assert_eq!(
            fold_words(&["start", "--sync=true"]).expect("fold").len(),
            2
        );
        assert_eq!(
            fold_words(&["start", "--sync=false"]).expect("fold").len(),
            1
        );
        let error = fold_words(&["start", "--sync=yes"]).expect_err("neither");
        assert!(
            error.contains("--sync: `yes` is neither true nor false"),
            "{error}"
        );
        let error = fold_words(&["start", "--sync", "true"]).expect_err("a word");
        assert!(error.contains("write --sync=true"), "{error}");
    }

    #[test]
    fn a_value_may_look_like_a_flag_only_behind_an_equals_sign() {
        let error = fold_words(&["start", "--diskFolder", "--sync"]).expect_err("forgotten");
        assert!(error.contains("write --diskFolder=--sync"), "{error}");
        let error = fold_words(&["start", "--config", "-v"]).expect_err("forgotten");
        assert!(error.contains("write --config=-v"), "{error}");
        let error = fold_words(&["start", "--config", "--help"]).expect_err("forgotten");
        assert!(error.contains("no value follows"), "{error}");
        let folded = fold_words(&["start", "--diskFolder=--sync"]).expect("fold");
        assert_eq!(folded, ["start", "--disk-folder", "--sync"]);
        let folded = fold_words(&["start", "--blockPass", "-odd-secret"]).expect("fold");
        assert_eq!(folded[2], "-odd-secret");
        let error = fold_words(&["start", "--config"]).expect_err("missing");
        assert!(error.contains("--config: no value follows"), "{error}");
        let error = fold_words(&["start", "--config="]).expect_err("empty");
        assert!(error.contains("its value is empty"), "{error}");
    }

    #[test]
    fn mistakes_are_one_line_with_a_guess_where_there_is_one() {
        for (words, part) in [
            (
                &["start", "--diskFoldr=/x"][..],
                "did you mean --diskFolder?",
            ),
            (
                &["start", "--disk-foldr", "/x"],
                "did you mean --disk-folder?",
            ),
            (&["start", "--nossl"], "did you mean --no-ssl?"),
            (
                &["start", "-diskFolder", "/x"],
                "did you mean --diskFolder?",
            ),
            (
                &["start", "--disk_folder", "/x"],
                "did you mean --disk-folder?",
            ),
            (
                &["start", "--zzzzzz"],
                "--zzzzzz is not a flag of `forebay start`",
            ),
            (&["strat"], "did you mean `start`?"),
            (&["frobnicate"], "the commands are start, check, drain"),
            (&["init"], "one of creds, systemd is needed"),
            (&[], "no command given"),
            (&["start", "extra"], "`extra` is not expected here"),
            (&["start", "--sync", "--sync"], "given twice"),
            (
                &["start", "--diskQuota=5%", "--disk-quota", "6%"],
                "--disk-quota is given twice",
            ),
            (&["start", "--"], "-- is not a flag"),
        ] {
            let error = fold_words(words).expect_err("a mistake");
            assert!(error.contains(part), "{words:?}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn no_error_repeats_a_secret() {
        for words in [
            &["start", "--blockPas=hush"][..],
            &["start", "--blockPass", "hu", "hush"],
            &["start", "--blockPass=hush", "--blockPass=hush"],
            &["drain", "--token", "hu", "hush"],
            &["drain", "--token=hush", "--token=hush"],
        ] {
            let error = fold_words(words).expect_err("a mistake");
            assert!(!error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn words_that_are_not_text_are_refused_by_name() {
        let broken = OsString::from_vec(b"/x\xff".to_vec());
        let grammar = Arguments::get_args_info();
        let words = ["start".into(), "--diskFolder".into(), broken];
        let error = fold(&words, &grammar).expect_err("not text").to_string();
        assert!(
            error.contains("--diskFolder: its value is not valid UTF-8"),
            "{error}"
        );
        let joined = OsString::from_vec(b"--diskFolder=/x\xff".to_vec());
        let error = fold(&["start".into(), joined], &grammar)
            .expect_err("not text")
            .to_string();
        assert!(
            error.contains("--diskFolder: its value is not valid UTF-8"),
            "{error}"
        );
        let name = OsString::from_vec(b"--\xff\xff".to_vec());
        fold(&["start".into(), name], &grammar).expect_err("no such flag");
    }

    #[test]
    fn the_value_of_some_flags_may_be_left_out() {
        for (words, value) in [
            (&["dirty", "--retry"][..], ""),
            (&["dirty", "--retry", "--dev"], ""),
            (&["dirty", "--retry", "a/b"], "a/b"),
            (&["dirty", "--retry=-odd", "--dev"], "-odd"),
        ] {
            let folded = fold_words(words).expect("fold");
            assert_eq!(folded[1..3], ["--retry", value], "{words:?}");
        }
        let error = fold_words(&["dirty", "--retry="]).expect_err("empty");
        assert!(error.contains("its value is empty"), "{error}");
        let error = fold_words(&["dirty", "--retry", "a", "b"]).expect_err("two keys");
        assert!(error.contains("`b` is not expected here"), "{error}");
    }

    #[test]
    fn help_wins_over_what_follows_it() {
        assert_eq!(fold_words(&["--help"]), Ok(vec!["--help".to_owned()]));
        assert_eq!(
            fold_words(&["start", "-h", "--bogus"]),
            Ok(vec!["start".to_owned(), "--help".to_owned()])
        );
        assert_eq!(
            fold_words(&["help", "init", "creds"]).expect("fold")[2],
            "--help"
        );
    }

    proptest! {
        /// Whatever value is given behind `=`, it arrives byte for byte.
        #[test]
        fn any_value_survives_behind_an_equals_sign(value in "[^\\x00]+") {
            for flag in ["--diskFolder", "--disk-folder", "--blockPass", "--block-pass"] {
                let folded = fold_words(&["start", &format!("{flag}={value}")]);
                prop_assert_eq!(&folded.expect("fold")[2], &value);
            }
        }

        /// Any order of any flags in any spelling folds to the same list as argh's own spelling.
        #[test]
        fn spelling_never_changes_the_meaning(
            chosen in proptest::sample::subsequence(
                vec!["--disk-folder", "--disk-quota", "--max-bops", "--ssl-cert", "--config"], 0..=5),
            camels in proptest::collection::vec(any::<bool>(), 5),
            inlines in proptest::collection::vec(any::<bool>(), 5),
            value in "[a-z0-9/%][a-z0-9/%=-]{0,12}",
        ) {
            prop_assume!(!["help", "true", "false"].contains(&value.as_str()));
            let mut typed = vec!["start".to_owned()];
            let mut expected = vec!["start".to_owned()];
            for (index, flag) in chosen.iter().enumerate() {
                let name = if camels[index] { camel(flag) } else { (*flag).to_owned() };
                if inlines[index] {
                    typed.push(format!("{name}={value}"));
                } else {
                    typed.extend([name, value.clone()]);
                }
                expected.extend([(*flag).to_owned(), value.clone()]);
            }
            let words: Vec<&str> = typed.iter().map(String::as_str).collect();
            prop_assert_eq!(fold_words(&words), Ok(expected));
        }

        /// What is folded, argh accepts; what is not, is one line. Nothing panics.
        #[test]
        fn whatever_is_typed_argh_never_has_the_last_word(
            words in proptest::collection::vec(
                prop_oneof![
                    Just("start".to_owned()), Just("init".to_owned()), Just("creds".to_owned()),
                    Just("--sync".to_owned()), Just("--diskFolder".to_owned()),
                    Just("--block-user=me".to_owned()), Just("--help".to_owned()),
                    Just("-v".to_owned()), Just("--version".to_owned()), "\\PC{0,8}",
                ], 0..6),
        ) {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            match fold_words(&words) {
                Ok(folded) => {
                    use argh::FromArgs;
                    let folded: Vec<&str> = folded.iter().map(String::as_str).collect();
                    if let Err(exit) = Arguments::from_args(&["forebay"], &folded) {
                        prop_assert!(exit.status.is_ok(), "argh refuses {:?}: {}", folded, exit.output);
                    }
                }
                Err(error) => prop_assert!(!error.contains('\n'), "{}", error),
            }
        }
    }
}
