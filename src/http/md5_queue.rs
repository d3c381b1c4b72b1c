//! One core's bodies whose MD5 is wanted: taken together, for eight cost hardly more than one.
//!
//! This file owns which bodies go together and when others have their turn. A body that is alone is
//! hashed as it comes; where there are several, they wait for the first that is complete, whose
//! connection then takes them all along. It never waits for bytes, and copies none.

use forebay_io::buffer::Watch;
use forebay_io::local::Signal;
use forebay_io::md5::{LANES, Running, UNIT_BYTES, update_all};
use forebay_io::runtime::Runtime;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Bytes of each body between two turns of others: with all lanes in use some 150 µs.
const STEP_BYTES: usize = 64 << 10;

/// A body that is not complete goes along if it has so much: a step is as long as its shortest body.
const ALONG_BYTES_MIN: usize = 16 << 10;

/// The bodies of one core.
#[derive(Default)]
pub struct Md5Queue {
    /// In the order in which they came.
    jobs: RefCell<Vec<Rc<Job>>>,
    /// Whether one of their connections is at work for all.
    is_led: Cell<bool>,
}

/// A body as far as it was hashed.
struct Job {
    watch: Watch,
    running: Cell<Running>,
    hashed: Cell<usize>,
    is_complete: Cell<bool>,
    digest: Cell<Option<[u8; 16]>>,
    /// Its digest is there, or nobody leads any more.
    news: Signal,
}

impl Job {
    /// Bytes that could be hashed now.
    fn waiting(&self) -> usize {
        self.watch.filled() - self.hashed.get()
    }

    /// Ends a complete body of which less than a unit is left.
    fn end(&self) {
        let last = self.watch.view(self.hashed.get()..self.watch.filled());
        self.digest.set(Some(self.running.get().finish(&last)));
        self.news.raise();
    }
}

/// A body in the queue; leaves it when dropped.
pub struct BodyMd5 {
    queue: Rc<Md5Queue>,
    job: Rc<Job>,
}

impl Drop for BodyMd5 {
    fn drop(&mut self) {
        let mut jobs = self.queue.jobs.borrow_mut();
        jobs.retain(|job| !Rc::ptr_eq(job, &self.job));
        drop(jobs);
        // It may have been told to lead, and never come to it.
        if !self.queue.is_led.get() {
            self.queue.call_next(&self.job);
        }
    }
}

/// The lead over all bodies; another connection is told when it is given up.
struct Lead<'a> {
    queue: &'a Md5Queue,
    job: &'a Rc<Job>,
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        self.queue.is_led.set(false);
        self.queue.call_next(self.job);
    }
}

impl Md5Queue {
    /// Adds a body, which `watch` follows.
    pub fn add(self: &Rc<Self>, watch: Watch) -> BodyMd5 {
        let job = Rc::new(Job {
            watch,
            running: Cell::default(),
            hashed: Cell::new(0),
            is_complete: Cell::new(false),
            digest: Cell::new(None),
            news: Signal::default(),
        });
        self.jobs.borrow_mut().push(job.clone());
        BodyMd5 {
            queue: self.clone(),
            job,
        }
    }

    /// Hashes a step of those that have most reason to be: complete ones in their order, then
    /// those that have something. Returns whether there was anything to do.
    fn step(&self) -> bool {
        let chosen = self.choose();
        let length = chosen.iter().map(|job| job.waiting()).min();
        let Some(length) = length.map(|bytes| bytes.min(STEP_BYTES) / UNIT_BYTES * UNIT_BYTES)
        else {
            return false;
        };
        let views: Vec<_> = chosen
            .iter()
            .map(|job| {
                let start = job.hashed.get();
                job.watch.view(start..start + length)
            })
            .collect();
        let mut bodies: Vec<_> = chosen
            .iter()
            .zip(&views)
            .map(|(job, view)| (job.running.get(), &view[..]))
            .collect();
        update_all(&mut bodies);
        for (job, (running, _)) in chosen.iter().zip(bodies) {
            job.running.set(running);
            job.hashed.set(job.hashed.get() + length);
        }
        self.end_complete();
        true
    }

    fn choose(&self) -> Vec<Rc<Job>> {
        let jobs = self.jobs.borrow();
        let open = || jobs.iter().filter(|job| job.digest.get().is_none());
        let complete = open().filter(|job| job.is_complete.get());
        let along = open().filter(|job| !job.is_complete.get() && job.waiting() >= ALONG_BYTES_MIN);
        complete.chain(along).take(LANES).cloned().collect()
    }

    /// Tells a connection other than that of `job` to lead, if one waits for its digest.
    fn call_next(&self, job: &Rc<Job>) {
        let jobs = self.jobs.borrow();
        let open = jobs.iter().filter(|job| job.digest.get().is_none());
        let mut waiting = open.filter(|other| other.is_complete.get() && !Rc::ptr_eq(other, job));
        if let Some(next) = waiting.next() {
            next.news.raise();
        }
    }

    fn end_complete(&self) {
        let jobs = self.jobs.borrow();
        let open = jobs.iter().filter(|job| job.digest.get().is_none());
        for job in open.filter(|job| job.is_complete.get() && job.waiting() < UNIT_BYTES) {
            job.end();
        }
    }
}

impl BodyMd5 {
    /// Hashes what has come, if no other body could go along with it.
    pub fn progress(&self) {
        let is_alone = self.queue.jobs.borrow().len() == 1;
        if is_alone && self.job.waiting() >= UNIT_BYTES {
            // As long as a turn of those who receive bodies: the step's own bound is for eight.
            while self.job.waiting() >= ALONG_BYTES_MIN && self.queue.step() {}
        }
    }

    /// The MD5, now that the whole body is there.
    pub async fn finish<R: Runtime>(self, runtime: &R) -> [u8; 16] {
        self.job.is_complete.set(true);
        self.queue.end_complete();
        loop {
            if let Some(digest) = self.job.digest.get() {
                return digest;
            }
            if self.queue.is_led.replace(true) {
                self.job.news.wait().await;
                continue;
            }
            let lead = Lead {
                queue: &self.queue,
                job: &self.job,
            };
            while self.queue.step() && self.job.digest.get().is_none() {
                runtime.yield_now().await;
            }
            drop(lead);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_io::buffer::{BufferWriter, Pool};
    use forebay_io::sim::{SimExecutor, SimRuntime};
    use md5::{Digest as _, Md5};
    use proptest::prelude::*;

    /// A body's number and its digest.
    type Outcome = (usize, Option<[u8; 16]>);

    fn content(number: usize, bytes: usize) -> Vec<u8> {
        let byte = |place: usize| (place * 31 + number * 7 + place / 251) as u8;
        (0..bytes).map(byte).collect()
    }

    fn expected(bytes: &[u8]) -> [u8; 16] {
        Md5::digest(bytes).into()
    }

    /// Fills a buffer in pieces, as a connection does, and gives its MD5.
    async fn receive(
        runtime: SimRuntime,
        queue: Rc<Md5Queue>,
        mut buffer: BufferWriter,
        content: Vec<u8>,
        piece_bytes: usize,
        is_cut_short: bool,
    ) -> Option<[u8; 16]> {
        let body = queue.add(buffer.watch());
        for piece in content.chunks(piece_bytes) {
            buffer.append(piece);
            body.progress();
            runtime.yield_now().await;
        }
        match is_cut_short {
            true => None,
            false => Some(body.finish(&runtime).await),
        }
    }

    #[test]
    fn a_body_that_is_alone_is_hashed_as_it_comes() {
        let queue = Rc::new(Md5Queue::default());
        let pool = Pool::new(8 << 20);
        let mut buffer = pool.try_take(1 << 20).expect("room");
        let body = queue.add(buffer.watch());
        buffer.append(&content(1, 512 << 10));
        body.progress();
        assert!(body.job.waiting() < ALONG_BYTES_MIN);
        let other = queue.add(pool.try_take(1 << 20).expect("room").watch());
        buffer.append(&content(1, 256 << 10));
        body.progress();
        assert_eq!(body.job.waiting(), 256 << 10, "with another, it waits");
        drop(other);
        body.progress();
        assert!(body.job.waiting() < ALONG_BYTES_MIN, "alone again");
    }

    #[test]
    fn bodies_on_their_way_go_along_with_one_that_is_complete() {
        let mut executor = SimExecutor::new(1);
        let runtime = executor.runtime();
        let queue = Rc::new(Md5Queue::default());
        let pool = Pool::new(8 << 20);
        let mut partial = pool.try_take(1 << 20).expect("room");
        let mut whole = pool.try_take(1 << 20).expect("room");
        let partial_body = queue.add(partial.watch());
        let whole_body = queue.add(whole.watch());
        partial.append(&content(1, 200_000));
        whole.append(&content(2, 300_000));
        let digest = executor.block_on(async move { whole_body.finish(&runtime).await });
        assert_eq!(digest, expected(&content(2, 300_000)));
        assert!(partial_body.job.waiting() < ALONG_BYTES_MIN);
    }

    proptest! {
        #[test]
        fn every_body_gets_its_own_digest_whatever_breaks_off(
            seed: u64,
            bodies in prop::collection::vec(
                (0_usize..200_000, 1_usize..100_000, any::<bool>(), prop::option::of(0_usize..20)),
                1..20,
            ),
        ) {
            let mut executor = SimExecutor::new(seed);
            let queue = Rc::new(Md5Queue::default());
            let pool = Pool::new(64 << 20);
            let outcomes: Rc<RefCell<Vec<Outcome>>> = Rc::default();
            let mut wanted = 0;
            for (number, (bytes, piece_bytes, is_cut_short, gives_up)) in bodies.iter().enumerate() {
                let buffer = pool.try_take(*bytes).expect("room");
                let (runtime, outcomes) = (executor.runtime(), outcomes.clone());
                let receiving = receive(
                    runtime.clone(),
                    queue.clone(),
                    buffer,
                    content(number, *bytes),
                    *piece_bytes,
                    *is_cut_short,
                );
                let gives_up = *gives_up;
                wanted += usize::from(gives_up.is_none());
                executor.runtime().spawn(async move {
                    let Some(turns) = gives_up else {
                        let digest = receiving.await;
                        return outcomes.borrow_mut().push((number, digest));
                    };
                    // The connection is dropped, perhaps while it leads or was told to.
                    let mut receiving = Box::pin(receiving);
                    for _ in 0..turns {
                        if futures::poll!(receiving.as_mut()).is_ready() {
                            return;
                        }
                        runtime.yield_now().await;
                    }
                });
            }
            let ended = executor.run_steps(1_000_000);
            let outcomes = outcomes.borrow();
            prop_assert_eq!(outcomes.len(), wanted, "ended: {}", ended);
            for (number, digest) in outcomes.iter() {
                let (bytes, _, is_cut_short, _) = bodies[*number];
                let right = (!is_cut_short).then(|| expected(&content(*number, bytes)));
                prop_assert_eq!(*digest, right, "body {}", number);
            }
            prop_assert!(queue.jobs.borrow().is_empty() && !queue.is_led.get());
        }
    }
}
