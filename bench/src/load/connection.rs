//! One connection: owns who sends what when, and what becomes of each answer. A task of its thread; what it shares with the
//! others of the thread is the crew's, what it shares with all threads is in `Common`.
//!
//! Up to `--depth` requests are under way on it at once, answered in the order in which they were sent.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::load::herd::Gate;
use crate::load::keys::Random;
use crate::load::plan::{Lane, Plan};
use crate::load::request::{CONTENT_STEP_BYTES, Request};
use crate::load::response::Response;
use crate::load::samples::{Kind, Samples, Window};
use crate::load::schedule::Schedule;
use crate::load::target::Target;
use crate::load::topology::{self, Dispatcher};
use crate::load::wire::{ReadBuffer, Wire};

/// Wait after a failed request, so that a server that is gone is not hammered.
const RETRY_WAIT: Duration = Duration::from_millis(20);

/// Wait for the window to be opened, once its planned start is past: microseconds, if the machine is not taken away.
const OPENING_WAIT: Duration = Duration::from_millis(1);

/// Wait for connections to another core to take their requests.
const ROOM_WAIT: Duration = Duration::from_millis(1);

/// Wait for what other threads draw last; that takes them microseconds.
const LAST_WAIT: Duration = Duration::from_millis(50);

/// What the connections of all threads share.
pub(super) struct Common {
    pub(super) plan: Arc<Plan>,
    pub(super) window: Arc<Window>,
    /// Requests that each lane has begun, for those that make an exact number.
    pub(super) tickets: Vec<AtomicU64>,
    /// Connections of each lane that have not come to their end.
    pub(super) running: Vec<AtomicUsize>,
    /// Set when the lane that the run is for has come to its end.
    pub(super) over: AtomicBool,
    pub(super) dispatcher: Option<Dispatcher>,
    pub(super) gate: Option<Gate>,
}

/// What the connections of one thread share.
pub(super) struct Crew {
    pub(super) common: Arc<Common>,
    /// Emptied by the main thread every second.
    pub(super) samples: Arc<Mutex<Samples>>,
    pub(super) schedule: Schedule,
    pub(super) buffer: ReadBuffer,
}

/// An open connection.
struct Link {
    wire: Wire,
    /// The server's core that it has landed on, if that was asked.
    core: Option<usize>,
}

/// A request under way.
struct Flight {
    kind: Kind,
    /// When it was sent, or in the open loop due.
    begun: Instant,
    response: Response,
    body_bytes: u64,
    is_write: bool,
    /// The connection is closed when so much of the body has come.
    break_off_at: Option<u64>,
    /// Of a herd.
    round: Option<u64>,
}

pub(super) struct Connection {
    crew: Rc<Crew>,
    number: usize,
    lane: usize,
    target: Arc<Target>,
    random: Random,
    link: Option<Link>,
    flights: VecDeque<Flight>,
    /// Room for what is sent.
    outgoing: Vec<u8>,
}

impl Connection {
    pub(super) fn new(crew: Rc<Crew>, number: usize) -> Self {
        let plan = &crew.common.plan;
        Self {
            number,
            lane: plan.lane_of(number),
            target: Arc::clone(&plan.targets[number % plan.targets.len()]),
            random: Random::of(plan.seed, number as u64),
            link: None,
            flights: VecDeque::new(),
            outgoing: Vec::new(),
            crew,
        }
    }

    /// Sends requests until the window closes or there are none left.
    pub(super) async fn run(mut self) {
        let common = Arc::clone(&self.crew.common);
        let lane = &common.plan.lanes[self.lane];
        if !lane.warms_up {
            tokio::time::sleep_until(common.window.planned_start().into()).await;
            while !common.window.is_open() && !common.window.is_closed() {
                tokio::time::sleep(OPENING_WAIT).await;
            }
        }
        match &common.gate {
            Some(gate) => self.join_herd(&common, lane, gate).await,
            None => self.send_all(&common, lane).await,
        }
        if common.running[self.lane].fetch_sub(1, Ordering::AcqRel) == 1 && lane.ends_run {
            common.over.store(true, Ordering::Release);
        }
    }

    async fn send_all(&mut self, common: &Common, lane: &Lane) {
        let crew = Rc::clone(&self.crew);
        let (mut next, mut has_more) = (None, true);
        loop {
            let is_closed = common.window.is_closed();
            // What is under way when the window closes is waited for: a server is not left with half a request.
            if is_closed && self.flights.is_empty() {
                return;
            }
            if let Err(error) = self.connect().await {
                // Nothing is under way without a connection, so this stands for the request that could not be sent.
                self.file(
                    lane.kind_of_failure(),
                    Err((format!("connection: {error}"), false)),
                    None,
                );
                if lane.count.is_some() && self.ticket(common, lane).is_none() {
                    return;
                }
                tokio::time::sleep(RETRY_WAIT).await;
                continue;
            }
            if next.is_none() && has_more && !is_closed {
                next = self.next_request(common, lane).await;
                has_more = next.is_some();
            }
            if next.is_none() && self.flights.is_empty() {
                return;
            }
            let sends = next.is_some() && !is_closed && self.flights.len() < common.plan.depth;
            let due = match (sends, self.flights.is_empty()) {
                (true, true) => Some(crew.schedule.next().await),
                (true, false) => tokio::select! {
                    biased;
                    due = crew.schedule.next() => Some(due),
                    outcome = receive(self.link.as_mut(), &mut self.flights, &common.window) => {
                        self.settle(outcome).await;
                        None
                    }
                },
                (false, _) => {
                    let link = self.link.as_mut();
                    let outcome = receive(link, &mut self.flights, &common.window).await;
                    self.settle(outcome).await;
                    None
                }
            };
            if let Some(due) = due
                && let Some(request) = next.take()
            {
                let outcome = match due {
                    Ok(begun) => self.send(&request, begun, None).await,
                    Err(error) => Err(error),
                };
                if outcome.is_err() {
                    self.settle(outcome).await;
                }
            }
        }
    }

    /// Asks for one key in each round, when all others do.
    async fn join_herd(&mut self, common: &Common, lane: &Lane, gate: &Gate) {
        for round in 0..lane.keys.count() {
            // Whoever finds no connection here tries again in the round, and it counts.
            let _ = self.connect().await;
            let item = lane.keys.item(round);
            let request = Request::new(&common.plan, lane, &self.target, &item, &mut self.random);
            let released = gate.pass().await;
            let mut outcome = self.connect().await;
            if outcome.is_ok() {
                outcome = self.send(&request, released, Some(round)).await;
            }
            if let Err(error) = &outcome
                && self.flights.is_empty()
            {
                self.file(
                    lane.kind_of_failure(),
                    Err((format!("connection: {error}"), false)),
                    None,
                );
                continue;
            }
            while !self.flights.is_empty() {
                if outcome.is_ok() {
                    let link = self.link.as_mut();
                    outcome = receive(link, &mut self.flights, &common.window).await;
                }
                self.settle(std::mem::replace(&mut outcome, Ok(()))).await;
            }
        }
    }

    /// Leave to make one more request of an exact number; `Some` without such a number.
    fn ticket(&self, common: &Common, lane: &Lane) -> Option<()> {
        let Some(count) = lane.count else {
            return Some(());
        };
        let taken = common.tickets[self.lane].fetch_add(1, Ordering::Relaxed);
        (taken < count).then_some(())
    }

    async fn next_request(&mut self, common: &Common, lane: &Lane) -> Option<Request> {
        let core = self.link.as_ref().and_then(|link| link.core);
        let number = match (&common.dispatcher, core) {
            (Some(dispatcher), Some(core)) => {
                self.dispatched(common, lane, dispatcher, core).await?
            }
            _ => {
                self.ticket(common, lane)?;
                lane.keys.next(&mut self.random)
            }
        };
        let item = lane.keys.item(number);
        let plan = &common.plan;
        Some(Request::new(
            plan,
            lane,
            &self.target,
            &item,
            &mut self.random,
        ))
    }

    /// The next object for this connection's core; others are left to the connections that they belong to.
    async fn dispatched(
        &mut self,
        common: &Common,
        lane: &Lane,
        dispatcher: &Dispatcher,
        core: usize,
    ) -> Option<u64> {
        while !common.window.is_closed() {
            if let Some(number) = dispatcher.take(core) {
                return Some(number);
            }
            if self.ticket(common, lane).is_none() {
                // Whoever drew the last ones may be about to leave them to this core.
                tokio::time::sleep(LAST_WAIT).await;
                return dispatcher.take(core);
            }
            let number = lane.keys.next(&mut self.random);
            match dispatcher.sender(&lane.keys.item(number).key) {
                Some(sender) if sender != core => {
                    while !dispatcher.leave(sender, number) && !common.window.is_closed() {
                        tokio::time::sleep(ROOM_WAIT).await;
                        if let Some(number) = dispatcher.take(core) {
                            return Some(number);
                        }
                    }
                }
                _ => return Some(number),
            }
        }
        None
    }

    /// Opens the connection if it is not, to the core that it is wanted on.
    async fn connect(&mut self) -> io::Result<()> {
        if self.link.is_some() {
            return Ok(());
        }
        let crew = Rc::clone(&self.crew);
        let Some(dispatcher) = &crew.common.dispatcher else {
            let wire = Wire::connect(&self.target, crew.buffer.clone()).await?;
            self.adopt(Link { wire, core: None });
            return Ok(());
        };
        let wanted = dispatcher.wanted_core(self.number);
        for _ in 0..dispatcher.tries() {
            let mut wire = Wire::connect(&self.target, crew.buffer.clone()).await?;
            let core = topology::ask(&mut wire, &self.target).await?.core;
            if wanted.is_none() || wanted == core {
                self.adopt(Link { wire, core });
                return Ok(());
            }
        }
        Err(io::Error::other("no connection landed on the wanted core"))
    }

    fn adopt(&mut self, link: Link) {
        let mut samples = self
            .crew
            .samples
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        samples.tls = link.wire.tls_name();
        self.link = Some(link);
    }

    /// Sends a request. Failed, it is under way all the same, to be settled with the others.
    async fn send(
        &mut self,
        request: &Request,
        begun: Instant,
        round: Option<u64>,
    ) -> io::Result<()> {
        let every = self.crew.common.plan.break_off;
        let breaks_off = every.is_some_and(|every| self.random.below(every) == 0);
        self.flights.push_back(Flight {
            kind: request.kind,
            begun,
            response: Response::new(request.expectation),
            body_bytes: request.body_bytes,
            is_write: request.body.is_some(),
            break_off_at: breaks_off.then_some(request.body_bytes / 2),
            round,
        });
        let Some(link) = &mut self.link else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let Some(content) = &request.body else {
            return link.wire.send(request.head.as_bytes()).await;
        };
        // The head goes with the first of the body, so that a small write is one packet.
        let (out, mut offset) = (&mut self.outgoing, 0);
        out.clear();
        out.extend_from_slice(request.head.as_bytes());
        loop {
            let start = out.len();
            let step = (request.body_bytes - offset).min(CONTENT_STEP_BYTES as u64);
            out.resize(start + step as usize, 0);
            content.fill(offset, &mut out[start..]);
            link.wire.send(out).await?;
            out.clear();
            offset += step;
            if offset >= request.body_bytes {
                return Ok(());
            }
        }
    }

    /// Files what is answered, and everything that is under way if the connection is gone.
    async fn settle(&mut self, outcome: io::Result<()>) {
        let now = Instant::now();
        let mut lost = outcome.err().map(|error| error.to_string());
        let mut failed = lost.is_some();
        let is_complete = |flight: &Flight| flight.response.is_complete();
        while self.flights.front().is_some_and(is_complete)
            && let Some(flight) = self.flights.pop_front()
        {
            let response = &flight.response;
            let flaw = response
                .flaw()
                .map(|flaw| (flaw.kind(), flaw.is_wrong_content()));
            if !response.keep_alive() && lost.is_none() {
                lost = Some("closed before the answer".into());
            }
            failed |= flaw.is_some();
            if flaw.is_none() && flight.is_write {
                self.crew.common.window.add_bytes(flight.body_bytes);
            }
            self.count_owner(response.owner());
            self.file(
                flight.kind,
                flaw.map_or(Ok(now - flight.begun), Err),
                Some(&flight),
            );
        }
        if self
            .flights
            .front()
            .is_some_and(Flight::is_to_be_broken_off)
        {
            self.flights.clear();
            self.link = None;
        }
        if let Some(why) = lost {
            self.link = None;
            for flight in std::mem::take(&mut self.flights) {
                self.file(
                    flight.kind,
                    Err((format!("connection: {why}"), false)),
                    None,
                );
            }
        }
        if failed && self.flights.is_empty() {
            tokio::time::sleep(RETRY_WAIT).await;
        }
    }

    fn count_owner(&self, owner: Option<usize>) {
        let core = self.link.as_ref().and_then(|link| link.core);
        if let (Some(owner), Some(core)) = (owner, core)
            && self.crew.common.window.contains(Instant::now())
        {
            let mut samples = self
                .crew
                .samples
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            samples.owner_known += 1;
            samples.owner_met += u64::from(owner == core);
        }
    }

    /// Counts a request as a sample or as an error, if it ended within the window.
    fn file(&self, kind: Kind, outcome: Result<Duration, (String, bool)>, flight: Option<&Flight>) {
        let common = &self.crew.common;
        if !common.window.contains(Instant::now()) {
            return;
        }
        let mut samples = self
            .crew
            .samples
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let filed = match outcome {
            Ok(latency) => {
                let round = flight.and_then(|flight| flight.round);
                if let (Some(gate), Some(round)) = (&common.gate, round) {
                    gate.arrived(round, latency);
                }
                samples.add(kind, latency, flight.map_or(0, |flight| flight.body_bytes))
            }
            Err((name, is_wrong_content)) => {
                samples.wrong_content += u64::from(is_wrong_content);
                samples.add_error(kind, name)
            }
        };
        // Making a histogram fails for bounds that make no sense, and the bounds are constants that a test has made one with.
        debug_assert!(filed.is_ok());
    }
}

impl Flight {
    fn is_to_be_broken_off(&self) -> bool {
        self.break_off_at
            .is_some_and(|bytes| self.response.received() >= bytes)
    }
}

/// Takes in what comes next of the answers to `flights`. Dropped while it waits, it has taken nothing.
async fn receive(
    link: Option<&mut Link>,
    flights: &mut VecDeque<Flight>,
    window: &Window,
) -> io::Result<()> {
    let Some(link) = link else {
        return Err(io::ErrorKind::NotConnected.into());
    };
    if link.wire.can_discard()
        && let Some(flight) = flights.front_mut()
        && !flight.is_write
        && flight.response.discardable() > 0
    {
        let dropped = link.wire.discard(flight.response.discardable()).await?;
        flight.response.skip(dropped);
        window.add_bytes(flight.response.take_new_bytes());
        return Ok(());
    }
    let mut current = 0;
    let received = link.wire.receive(|mut bytes| {
        while !bytes.is_empty() {
            let Some(flight) = flights.get_mut(current) else {
                // Bytes that belong to no request: the last answer was too long.
                if let Some(last) = flights.back_mut() {
                    last.response.add_surplus();
                }
                return;
            };
            bytes = &bytes[flight.response.push(bytes)..];
            let new_bytes = flight.response.take_new_bytes();
            if !flight.is_write {
                window.add_bytes(new_bytes);
            }
            current += usize::from(flight.response.is_complete());
        }
    });
    received.await
}
