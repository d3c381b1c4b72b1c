//! The wanted bytes of one block, in the pieces in which they come.
//!
//! Whoever sends or copies a block reads it here. A record that breaks off in the middle (damage, a
//! disk that fails or does not answer) is asked for again, once, from where it broke off: by then its
//! home has dropped it, and the store has the rest. This file knows no HTTP and keeps no block.

use crate::messages::{BlockBody, BlockRequest, ReadError};
use crate::router::Router;
use forebay_io::buffer::{View, Watch};
use forebay_io::disk::Disk;
use forebay_io::runtime::Runtime;
use forebay_io::store::{StoreError, StoreErrorKind};
use std::ops::Range;
use std::sync::Arc;

/// Reads one block's part of an object to its end.
pub struct BlockReader<'a, R: Runtime, D: Disk> {
    router: &'a Router<R, D>,
    /// What is not read yet.
    request: BlockRequest,
    source: Source,
}

enum Source {
    Ready(View),
    Filling {
        watch: Watch,
        /// Whether the rest can be asked for again.
        is_record: bool,
    },
}

impl<'a, R: Runtime, D: Disk> BlockReader<'a, R, D> {
    /// A reader of `body`, which `router` gave for `request`.
    pub fn new(router: &'a Router<R, D>, request: BlockRequest, body: BlockBody) -> Self {
        BlockReader {
            router,
            request,
            source: Source::of(body),
        }
    }

    /// Whether the bytes were all there when they were given.
    pub fn is_ready(&self) -> bool {
        matches!(self.source, Source::Ready(_))
    }

    /// Whether a call of [`BlockReader::next`] would wait.
    pub fn is_waiting(&self) -> bool {
        match &self.source {
            Source::Ready(_) => false,
            Source::Filling { watch, .. } => watch.filled() <= self.request.range.start,
        }
    }

    /// The next bytes, as many as there are; nothing at the end.
    ///
    /// # Errors
    /// What the store says, if the rest must come from there; [`ReadError::Changed`] if it has another
    /// version by now.
    pub async fn next(&mut self) -> Result<Option<View>, ReadError> {
        while !self.request.range.is_empty() {
            match self.source.next(&self.request.range).await {
                Ok(view) => {
                    self.request.range.start += view.len();
                    return Ok(Some(view));
                }
                Err(Broken { is_record: true }) => self.ask_again().await?,
                Err(Broken { is_record: false }) => return Err(broken()),
            }
        }
        Ok(None)
    }

    /// All of the wanted bytes as one view.
    ///
    /// # Errors
    /// As [`BlockReader::next`].
    pub async fn whole(mut self) -> Result<View, ReadError> {
        loop {
            match self.source.whole(&self.request.range).await {
                Ok(view) => return Ok(view),
                Err(Broken { is_record: true }) => self.ask_again().await?,
                Err(Broken { is_record: false }) => return Err(broken()),
            }
        }
    }

    /// Asks for what is missing; what comes now is not asked for a third time.
    async fn ask_again(&mut self) -> Result<(), ReadError> {
        let (body, _) = self.router.read_block(self.request.clone()).await?;
        self.source = match Source::of(body) {
            Source::Filling { watch, .. } => Source::Filling {
                watch,
                is_record: false,
            },
            ready => ready,
        };
        Ok(())
    }
}

/// The source ended before the block did.
struct Broken {
    is_record: bool,
}

impl Source {
    fn of(body: BlockBody) -> Source {
        let (watch, is_record) = match body {
            BlockBody::Ready(view) => return Source::Ready(view),
            BlockBody::Filling { watch, .. } => (watch, false),
            BlockBody::Reading { watch, .. } => (watch, true),
        };
        Source::Filling { watch, is_record }
    }

    /// What there is of `range` of the block, from its start; at least one byte.
    async fn next(&mut self, range: &Range<usize>) -> Result<View, Broken> {
        match self {
            Source::Ready(_) => self.whole(range).await,
            Source::Filling { watch, is_record } => {
                let filled = watch.wait_for(range.start + 1).await;
                match filled.map(|filled| filled.min(range.end)) {
                    Ok(end) if end > range.start => Ok(watch.view(range.start..end)),
                    _ => Err(Broken {
                        is_record: *is_record,
                    }),
                }
            }
        }
    }

    async fn whole(&mut self, range: &Range<usize>) -> Result<View, Broken> {
        match self {
            // A view is of the wanted bytes alone.
            Source::Ready(view) if view.len() == range.len() => Ok(view.clone()),
            Source::Ready(_) => Err(Broken { is_record: false }),
            Source::Filling { watch, is_record } => match watch.wait_for(range.end).await {
                Ok(filled) if filled >= range.end => Ok(watch.view(range.clone())),
                _ => Err(Broken {
                    is_record: *is_record,
                }),
            },
        }
    }
}

fn broken() -> ReadError {
    let message = "the fetch of a block failed after its head";
    let error = StoreError::new(StoreErrorKind::Corrupt, message);
    ReadError::Store(Arc::new(error))
}
