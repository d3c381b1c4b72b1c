//! An ordered walk of the folder, for a page of a list.
//!
//! This file owns the order. Directories give their names in none, so each is read as a whole, and of
//! it the first names from the position on are kept: as many as the page could take. It keeps no
//! directory open while it is inside another, follows no link, and never describes an object that the
//! page does not show.

use super::folder::Folder;
use super::name::{self, NameKind};
use super::{Identity, Trouble, describe};
use forebay_io::listing::{ListPage, ListRequest, ListedObject, PageBuilder, Wanted};
use forebay_io::store::check_key;
use std::collections::BTreeMap;
use std::io;

/// Names of a directory that are kept at least, however deep it is and however little the page takes:
/// each rereading of a directory brings so many.
const NAMES_KEPT_MIN: usize = 16;

/// A page of a list of the folder's objects.
pub(super) fn page(folder: &Folder, request: &ListRequest) -> Result<ListPage, Trouble> {
    let mut walk = Walk {
        folder,
        request,
        page: PageBuilder::new(request),
    };
    let is_full = walk.directory(&mut Vec::new(), 0)?;
    Ok(walk.page.finish(is_full))
}

struct Walk<'r> {
    folder: &'r Folder,
    request: &'r ListRequest,
    page: PageBuilder<'r>,
}

/// Something in a directory, by the names that lead to it from there.
enum Found {
    File(Vec<String>),
    Directory(Vec<String>),
}

/// The first of what is in a directory.
struct Selection {
    /// By the beginning of the keys.
    first: BTreeMap<String, Found>,
    names_max: usize,
    /// Whether more follows than was kept.
    is_cut: bool,
}

impl Selection {
    fn insert(&mut self, key: String, found: Found) {
        self.first.insert(key, found);
        if self.first.len() > self.names_max {
            self.first.pop_last();
            self.is_cut = true;
        }
    }
}

impl Walk<'_> {
    /// Lists what is below a directory; whether the page was full before all was seen.
    fn directory(&mut self, directories: &mut Vec<String>, depth: usize) -> Result<bool, Trouble> {
        let mut done: Option<String> = None;
        loop {
            let mut selection = Selection {
                first: BTreeMap::new(),
                // Levels share what the page has room for, so that memory is bounded by the page.
                names_max: NAMES_KEPT_MIN.max(self.page.room() / (depth + 1)),
                is_cut: false,
            };
            self.select(directories, 0, done.as_deref(), &mut selection)?;
            let Some(last) = selection.first.last_key_value() else {
                return Ok(false);
            };
            done = Some(last.0.clone());
            for (key, found) in selection.first {
                let is_full = match found {
                    Found::File(names) => self.file(directories, &names, key)?,
                    Found::Directory(names) => self.below(directories, names, &key, depth)?,
                };
                if is_full {
                    return Ok(true);
                }
            }
            if !selection.is_cut {
                return Ok(false);
            }
        }
    }

    /// Finds the first of what is in a directory after `done`. The last `pieces` of the directories
    /// are beginnings of a long segment: its other pieces belong to the same directory of keys.
    fn select(
        &self,
        directories: &mut Vec<String>,
        pieces: usize,
        done: Option<&str>,
        selection: &mut Selection,
    ) -> Result<(), Trouble> {
        let base = directories.len() - pieces;
        let mut long = Vec::new();
        let here = directories.clone();
        let read = self.folder.names_in(&here, |name| {
            let kind = name::kind_of(name);
            if kind == NameKind::Piece {
                return long.push(name.to_owned());
            }
            directories.push(name.to_owned());
            let names = || directories[base..].to_vec();
            let found = match kind {
                NameKind::Directory => name::beginning_of(directories)
                    .filter(|beginning| self.request.may_hold(beginning))
                    .map(|beginning| (beginning, Found::Directory(names()))),
                _ => name::key_of(directories.iter().map(String::as_str))
                    .filter(|key| check_key(key).is_ok() && self.request.name_of(key).is_some())
                    .map(|key| (key, Found::File(names()))),
            };
            directories.pop();
            if let Some((key, found)) = found
                && done.is_none_or(|done| key.as_str() > done)
            {
                selection.insert(key, found);
            }
        });
        unless_foreign(read)?;
        for piece in long {
            directories.push(piece);
            let selected = self.select(directories, pieces + 1, done, selection);
            directories.pop();
            selected?;
        }
        Ok(())
    }

    /// Takes in a key; whether the page was full.
    fn file(
        &mut self,
        directories: &[String],
        names: &[String],
        key: String,
    ) -> Result<bool, Trouble> {
        let wanted = self.page.wants(&key);
        match wanted {
            Wanted::Nothing => return Ok(false),
            Wanted::Full => return Ok(true),
            Wanted::Presence | Wanted::Object => {}
        }
        let path = [directories, names].concat();
        // Removed since, or nothing that is an object.
        let Some(file) = unless_foreign(self.folder.find(&path))?.flatten() else {
            return Ok(false);
        };
        if wanted == Wanted::Presence {
            self.page.add_presence(&key);
            return Ok(false);
        }
        let identity = Identity::of(&file)?;
        let meta = match describe(file) {
            Ok(found) => found.meta,
            // It is there, though it cannot be read.
            Err(Trouble::Damaged(_)) => identity.meta(),
            Err(trouble) => return Err(trouble),
        };
        self.page.add_object(ListedObject {
            key,
            size: meta.size,
            etag: meta.etag,
            last_modified_ms: meta.last_modified * 1000,
        });
        Ok(false)
    }

    /// Lists what is below a directory of keys that begin with `beginning`, unless all of it has one
    /// name that is known already.
    fn below(
        &mut self,
        directories: &mut Vec<String>,
        names: Vec<String>,
        beginning: &str,
        depth: usize,
    ) -> Result<bool, Trouble> {
        let is_one_name = self.request.common_prefix(beginning).is_some();
        if is_one_name && self.page.wants(beginning) == Wanted::Nothing {
            return Ok(false);
        }
        let length = directories.len();
        directories.extend(names);
        let is_full = self.directory(directories, depth + 1);
        directories.truncate(length);
        is_full
    }
}

/// A link, or something else that no object of ours is, has no keys.
fn unless_foreign<T>(outcome: io::Result<T>) -> Result<Option<T>, Trouble> {
    match outcome {
        Ok(found) => Ok(Some(found)),
        Err(error) if is_foreign(&error) => Ok(None),
        Err(error) => Err(Trouble::Io(error)),
    }
}

fn is_foreign(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotADirectory
        || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_io::listing::Entry;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    /// Puts a plain file where the object of a key is.
    fn plant(root: &Path, key: &str) {
        let path = root.join(name::names_of(key).join("/"));
        std::fs::create_dir_all(path.parent().expect("inside")).expect("a folder");
        std::fs::write(path, key).expect("a file");
    }

    fn all(root: &Path, request: &ListRequest) -> Vec<String> {
        let folder = Folder::open(root).expect("usable");
        let mut request = request.clone();
        let mut listed = Vec::new();
        loop {
            let page = page(&folder, &request).map_err(forebay_io::store::StoreError::from);
            let page = page.expect("listed");
            let names = page.entries.iter().map(|entry| entry.name().to_owned());
            listed.extend(names);
            match page.complete_to {
                Some(end) => {
                    assert_eq!(page.entries.len(), request.limit);
                    request.after = end;
                }
                None => return listed,
            }
        }
    }

    fn any_key() -> impl Strategy<Value = String> {
        let part = prop::sample::select(vec!["a", "b", "/", "-", ".", "ü", "%", "\u{1}"]);
        let filler = prop::sample::select(vec![0_usize, 0, 0, 0, 79, 80, 238, 239, 240, 241]);
        let filled = prop::sample::select(vec!["x", "ü"]);
        (prop::collection::vec(part, 1..6), filler, filled)
            .prop_map(|(parts, count, fill)| format!("{}{}", fill.repeat(count), parts.concat()))
            .prop_filter("a key", |key| check_key(key).is_ok())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_walk_is_in_order_whatever_the_names(
            keys in prop::collection::btree_set(any_key(), 0..60),
            limit in 1..20_usize,
            delimiter in prop::sample::select(vec![None, Some("/"), Some("b"), Some("x/")]),
            prefix in prop::sample::select(vec!["", "a", "a/", "xx", "üü"]),
        ) {
            let root = tempfile::tempdir().expect("a folder");
            keys.iter().for_each(|key| plant(root.path(), key));
            let request = ListRequest {
                prefix: prefix.to_owned(),
                delimiter: delimiter.map(str::to_owned),
                after: String::new(),
                limit,
            };
            let names: BTreeSet<&str> = keys.iter().filter_map(|key| request.name_of(key)).collect();
            prop_assert!(all(root.path(), &request).iter().eq(names));
        }
    }

    #[test]
    fn what_is_no_object_is_not_listed() {
        let root = tempfile::tempdir().expect("a folder");
        plant(root.path(), "good/object");
        std::fs::create_dir_all(root.path().join("empty+/deeper+")).expect("a folder");
        std::fs::create_dir(root.path().join("not-marked")).expect("a folder");
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("link")).expect("a link");
        std::os::unix::fs::symlink("/etc", root.path().join("etc+")).expect("a link");
        for name in ["with blank", "%2E%2E", "%", "%zz"] {
            std::fs::write(root.path().join(name), "x").expect("a file");
        }
        let request = ListRequest {
            limit: 1000,
            ..ListRequest::default()
        };
        let folder = Folder::open(root.path()).expect("usable");
        let listed = page(&folder, &request).map_err(forebay_io::store::StoreError::from);
        let cut = ListRequest {
            delimiter: Some("/".into()),
            ..request.clone()
        };
        assert_eq!(all(root.path(), &cut), ["good/"]);
        let entries = listed.expect("listed").entries;
        let names: Vec<&str> = entries.iter().map(Entry::name).collect();
        assert_eq!(names, ["good/object"]);
    }
}
