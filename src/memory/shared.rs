//! Shared pools: several models under one limit of physical memory, each with addresses of its own.
//!
//! What it does: commits and decommits per model; when memory is short, takes what is pooled, then asks the owners of
//! models that have more than is due (`shares` says who); clears memory that goes from one model to another. What it
//! does not: take memory from a model that its owner has not given up.
//!
//! Invariants: what all models and the pool hold is never more than the limit, not by a page; a model never has less
//! than its minimum for the sake of another. No owner is asked under a lock. Lock order: the table of models, alone; a
//! range's; the shares'.

mod scrubber;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use self::scrubber::Scrubber;
use super::Memory;
use super::budget::{MachineBudget, Payer, Quota};
use super::elastic::{Elastic, ElasticConfig, ElasticStatistics, Extent, page_of};
use super::page_class::{PageClass, PhysicalConfig, PhysicalStatistics, Ready};
use super::physical::Physical;
use super::range::Holder;
use super::reclaim::{Hook, Reclaim};
use super::rooms::Room;
use super::shares::{ModelPayer, Request, Shares, Terms};
use crate::device::{DeviceSlice, Stream};
use crate::error::{Error, Result, Status};
use crate::sync::Mutex;

/// How a pool is made.
#[derive(Clone, Debug, Default)]
pub struct SharedConfig {
    /// Most physical memory of all models together, rounded down to device pages.
    pub limit_bytes: u64,
    /// What is committed and decommitted at least, a multiple of the device's page; 0 takes that page.
    pub page_bytes: u64,
    /// As for [`ElasticConfig::has_slabs`].
    pub has_slabs: bool,
    /// A budget that the processes of this machine share, by its name, and its limit (0 takes the one that is there).
    pub machine: Option<(String, u64)>,
    /// Pages that are made ahead.
    pub ready: Ready,
}

/// What a model has.
#[derive(Clone, Copy, Debug, Default)]
pub struct ModelStatistics {
    /// Its range.
    pub range: ElasticStatistics,
    /// What it was promised.
    pub terms: Terms,
    /// Most physical memory that it had at one time.
    pub peak_bytes: u64,
    /// Asked of its owner and not given up yet.
    pub wanted_bytes: u64,
    /// How often its owner was asked.
    pub requests: u64,
    /// How long it has been registered.
    pub age_ns: u64,
}

/// What a pool has and did.
#[derive(Clone, Copy, Debug, Default)]
pub struct SharedStatistics {
    /// Most physical memory.
    pub limit_bytes: u64,
    /// Physical memory of all models.
    pub used_bytes: u64,
    /// Physical memory that waits for use.
    pub pooled_bytes: u64,
    /// Models.
    pub models: u64,
    /// How often an owner was asked to give.
    pub requests: u64,
    /// Commits that were refused for lack of memory.
    pub refusals: u64,
    /// Bytes cleared because they came from elsewhere.
    pub scrubbed_bytes: u64,
    /// Charged to the machine's budget by all processes; 0 without one.
    pub machine_used_bytes: u64,
    /// The pool of pages.
    pub physical: PhysicalStatistics,
}

struct Model {
    id: u64,
    name: String,
    terms: Terms,
    shares: Arc<Shares>,
    elastic: Elastic,
    hook: Hook,
    wanted_bytes: AtomicU64,
    requests: AtomicU64,
    /// Struck out of the books when the range has gone.
    _entry: Entry,
}

struct Entry {
    shares: Arc<Shares>,
    id: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.shares.remove(self.id);
    }
}

/// A pool. Thread-safe.
pub struct SharedPool {
    memory: Arc<Memory>,
    models: Mutex<BTreeMap<String, Arc<Model>>>,
    next_id: AtomicU64,
    shares: Arc<Shares>,
    physical: Arc<Physical>,
    scrubber: Scrubber,
    machine: Option<Arc<MachineBudget>>,
    config: SharedConfig,
    requests: AtomicU64,
    refusals: AtomicU64,
}

impl SharedPool {
    /// A pool of a memory's device without models. What it holds is charged to the memory's limit too.
    pub fn new(memory: &Arc<Memory>, mut config: SharedConfig) -> Result<Self> {
        let device = memory.device();
        let page_bytes = device.description().page_bytes;
        let unit = page_of(config.page_bytes, page_bytes)?;
        let asked_bytes = config.limit_bytes;
        config.limit_bytes -= asked_bytes % page_bytes.max(1);
        if config.limit_bytes < unit.max(1) {
            return Err(Error::argument(format!(
                "a limit of {asked_bytes} bytes is less than one page of {unit}; raise it, or take a smaller page, of \
                 {page_bytes} at least"
            )));
        }
        let machine = config.machine.as_ref().map(|(name, bytes)| MachineBudget::open(name, *bytes));
        let machine = machine.transpose()?;
        let mut above = vec![memory.payer()];
        above.extend(machine.iter().map(|machine| Arc::clone(machine) as Arc<dyn Payer>));
        let account = Quota::new("the shared pool's physical memory", 0, config.limit_bytes, above);
        // Everything that comes back is kept for the next model: moving it must not cost the driver's price.
        let mut kept = PhysicalConfig::of(device.as_ref());
        kept.high_bytes = config.limit_bytes;
        kept.keep_ready(config.ready, page_bytes, PageClass::largest(config.has_slabs));
        let physical = Physical::new(Arc::clone(device), account, kept, Arc::clone(memory.sink()))?;
        memory.hush(&physical);
        let scrubber = Scrubber::new(device)?;
        Ok(Self {
            memory: Arc::clone(memory),
            models: Mutex::default(),
            next_id: AtomicU64::new(1),
            shares: Shares::new(config.limit_bytes),
            physical,
            scrubber,
            machine,
            config,
            requests: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
        })
    }

    fn find(&self, name: &str) -> Result<Arc<Model>> {
        self.models.lock().get(name).cloned().ok_or_else(|| {
            Error::new(Status::NotFound, format!("no model \"{name}\" in this pool; register it first"))
        })
    }

    fn taken(name: &str) -> Error {
        Error::new(Status::AlreadyExists, format!("a model \"{name}\" is registered; take another name"))
    }

    /// Takes a model in, with addresses for `capacity_bytes`. Asks others for what its minimum needs.
    pub fn register(&self, name: &str, capacity_bytes: u64, mut terms: Terms) -> Result<()> {
        if name.is_empty() {
            return Err(Error::argument("a model without a name"));
        }
        if self.models.lock().contains_key(name) {
            return Err(Self::taken(name));
        }
        if terms.cap_bytes == 0 || terms.cap_bytes > self.config.limit_bytes {
            terms.cap_bytes = self.config.limit_bytes;
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut asked = BTreeSet::new();
        while let Err(error) = self.shares.admit(id, terms) {
            let next = self.shares.next_request_for_minimum(terms.min_bytes, |id| asked.contains(&id));
            self.relieve(&error, next, &mut asked).ok_or(error)?;
            // The books have room for it once the pages have left their models.
            self.physical.collect();
        }
        let entry = Entry { shares: Arc::clone(&self.shares), id };
        let config = ElasticConfig {
            capacity_bytes,
            page_bytes: self.config.page_bytes,
            has_slabs: self.config.has_slabs,
        };
        let payer = Arc::new(ModelPayer { shares: Arc::clone(&self.shares), id });
        let largest = PageClass::largest(config.has_slabs);
        let holder = Holder { tenant: id, payer: Some(payer), largest, takes_passed: true };
        let model = Arc::new(Model {
            id,
            name: name.to_owned(),
            terms,
            shares: Arc::clone(&self.shares),
            elastic: Elastic::of(Arc::clone(&self.physical), config, holder)?,
            hook: Hook::default(),
            wanted_bytes: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            _entry: entry,
        });
        let mut models = self.models.lock();
        if models.contains_key(name) {
            // Another thread was faster; the model goes after the lock.
            drop(models);
            return Err(Self::taken(name));
        }
        models.insert(name.to_owned(), model);
        Ok(())
    }

    /// Lets a model go with all its memory, once the streams of its decommits are past. Blocks. What it has committed
    /// is taken at once: nothing on the device may use it any more.
    pub fn unregister(&self, name: &str) -> Result<()> {
        let model = {
            let mut models = self.models.lock();
            let Some(model) = models.get(name) else {
                let text = format!("no model \"{name}\" in this pool");
                return Err(Error::new(Status::NotFound, text));
            };
            let pins = model.elastic.statistics().pins;
            if pins > 0 {
                let text = format!("{pins} ranges of \"{name}\" are pinned; unpin them first");
                return Err(Error::new(Status::InUse, text));
            }
            models.remove(name)
        };
        if let Some(model) = model {
            model.hook.set(None);
            model.elastic.clear();
        }
        Ok(())
    }

    /// Asks one owner, or does what else may help after a refusal; none if nothing is left to try.
    fn relieve(&self, error: &Error, next: Option<Request>, asked: &mut BTreeSet<u64>) -> Option<()> {
        if error.status != Status::OutOfMemory {
            return None;
        }
        let models: Vec<Arc<Model>> = self.models.lock().values().cloned().collect();
        if models.iter().any(|model| model.hook.is_inside()) {
            // An owner that is being asked must not make others be asked: they might ask it back.
            return None;
        }
        match next {
            Some(request) => {
                asked.insert(request.id);
                if let Some(model) = models.iter().find(|model| model.id == request.id) {
                    self.ask(model, request.bytes);
                }
                Some(())
            }
            // Id 0 is no model's: it stands for this last step, which is done once.
            None if asked.insert(0) => {
                self.memory.make_room();
                for model in &models {
                    // A point that cannot be waited for brings nothing back.
                    let _ = model.elastic.await_streams();
                }
                Some(())
            }
            None => None,
        }
    }

    fn ask(&self, model: &Model, bytes: u64) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        model.requests.fetch_add(1, Ordering::Relaxed);
        // Those who ask together ask for the same; the sum would be too much.
        model.wanted_bytes.fetch_max(bytes, Ordering::AcqRel);
        model.hook.ask(bytes);
    }

    /// Puts memory behind a part of a model's range, widened to pages, all or nothing. New memory is cleared if another
    /// model had it or the device has just made it. May ask owners of other models, and blocks.
    pub fn commit(&self, name: &str, offset: u64, bytes: u64) -> Result<Extent> {
        let model = self.find(name)?;
        let mut asked = BTreeSet::new();
        loop {
            let scrub = |foreign: &[DeviceSlice]| self.scrubber.clear(foreign);
            let error = match model.elastic.commit_prepared(offset, bytes, &scrub) {
                Ok(extent) => {
                    self.memory.relax();
                    return Ok(extent);
                }
                Err(error) => error,
            };
            let missing = model.elastic.missing_bytes(offset, bytes).unwrap_or(0);
            let next = model.shares.next_request(model.id, missing, |id| asked.contains(&id));
            if self.relieve(&error, next, &mut asked).is_none() {
                return Err(self.refusal(&model, error));
            }
        }
    }

    fn refusal(&self, model: &Model, error: Error) -> Error {
        if error.status != Status::OutOfMemory {
            return error;
        }
        self.refusals.fetch_add(1, Ordering::Relaxed);
        let (used, pooled) = (self.shares.used_bytes(), self.physical.statistics().pooled_bytes);
        let (own, _) = self.shares.of(model.id);
        error.context(&format!(
            "model \"{}\" has {own} bytes, all models {used} of {}, {pooled} are pooled, no other gives what it has \
             over its due",
            model.name, self.config.limit_bytes
        ))
    }

    /// Gives up a part of a model's range, as [`Elastic::decommit`] does.
    pub fn decommit(&self, name: &str, offset: u64, bytes: u64, stream: Option<Stream>) -> Result<Extent> {
        let model = self.find(name)?;
        let extent = model.elastic.decommit(offset, bytes, stream)?;
        let less = |wanted: u64| Some(wanted.saturating_sub(extent.changed_bytes));
        let _ = model.wanted_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        Ok(extent)
    }

    /// Whether every page of a part is committed.
    pub fn is_committed(&self, name: &str, offset: u64, bytes: u64) -> Result<bool> {
        self.find(name)?.elastic.is_committed(offset, bytes)
    }

    /// The addresses of a model.
    pub fn slice(&self, name: &str) -> Result<DeviceSlice> {
        Ok(self.find(name)?.elastic.slice())
    }

    /// Keeps a part committed until it is unpinned as often: memory that is registered with NCCL, RDMA or IPC.
    pub fn pin(&self, name: &str, offset: u64, bytes: u64) -> Result<Extent> {
        self.find(name)?.elastic.pin(offset, bytes)
    }

    /// Undoes one pin of the same part.
    pub fn unpin(&self, name: &str, offset: u64, bytes: u64) -> Result<Extent> {
        self.find(name)?.elastic.unpin(offset, bytes)
    }

    /// Sets what is called when others need memory of a model; none takes it away, once no other thread is inside.
    pub fn on_reclaim(&self, name: &str, reclaim: Option<Reclaim>) -> Result<()> {
        self.find(name)?.hook.set(reclaim);
        Ok(())
    }

    /// What a model has.
    pub fn model_statistics(&self, name: &str) -> Result<ModelStatistics> {
        Ok(self.statistics_of(&*self.find(name)?))
    }

    fn statistics_of(&self, model: &Model) -> ModelStatistics {
        ModelStatistics {
            range: model.elastic.statistics(),
            terms: model.terms,
            peak_bytes: self.shares.of(model.id).1,
            wanted_bytes: model.wanted_bytes.load(Ordering::Acquire),
            requests: model.requests.load(Ordering::Relaxed),
            age_ns: model.elastic.age_ns(),
        }
    }

    /// All models by name, and what each has.
    pub fn models(&self) -> Vec<(String, ModelStatistics)> {
        let models: Vec<Arc<Model>> = self.models.lock().values().cloned().collect();
        models.iter().map(|model| (model.name.clone(), self.statistics_of(model))).collect()
    }

    /// What all models have committed. Waits for nobody.
    pub fn committed_bytes(&self) -> u64 {
        self.models.lock().values().map(|model| model.elastic.committed().bytes()).sum()
    }

    /// What the pool has and did.
    pub fn statistics(&self) -> SharedStatistics {
        let (physical, used_bytes) = (self.physical.statistics(), self.shares.used_bytes());
        // A page that is passed on is in both books for a moment; it is the user's for so long.
        let pooled_bytes = physical.pooled_bytes.min(self.config.limit_bytes.saturating_sub(used_bytes));
        SharedStatistics {
            limit_bytes: self.config.limit_bytes,
            used_bytes,
            pooled_bytes,
            models: self.models.lock().len() as u64,
            requests: self.requests.load(Ordering::Relaxed),
            refusals: self.refusals.load(Ordering::Relaxed),
            scrubbed_bytes: self.scrubber.scrubbed_bytes(),
            machine_used_bytes: self.machine.as_ref().map_or(0, |machine| machine.used_bytes()),
            physical,
        }
    }

    /// The pool of pages.
    pub fn physical(&self) -> &Arc<Physical> {
        &self.physical
    }

    /// Checks the invariants of the books and of every page table.
    pub fn validate(&self) -> Result<()> {
        self.shares.validate()?;
        let models: Vec<Arc<Model>> = self.models.lock().values().cloned().collect();
        models.iter().try_for_each(|model| model.elastic.validate())
    }
}

impl Room for SharedPool {
    fn reclaim(&self, bytes: u64) -> u64 {
        // Above the soft limit pages go past the pool, so that what leaves the pool is not all of it.
        let before = self.physical.statistics().released_bytes();
        let give = || {
            self.physical.collect();
            let given = || self.physical.statistics().released_bytes() - before;
            self.physical.give(bytes.saturating_sub(given()));
            given()
        };
        let mut given_bytes = give();
        let models: Vec<Arc<Model>> = self.models.lock().values().cloned().collect();
        // An owner that is being asked must not make others be asked: they might ask it back.
        let is_inside = models.iter().any(|model| model.hook.is_inside());
        let mut asked = BTreeSet::new();
        while given_bytes < bytes && !is_inside {
            let missing_bytes = bytes - given_bytes;
            let next = self.shares.next_spare(missing_bytes, |id| asked.contains(&id));
            let Some(request) = next else { break };
            asked.insert(request.id);
            if let Some(model) = models.iter().find(|model| model.id == request.id) {
                self.ask(model, request.bytes);
            }
            given_bytes = give();
        }
        given_bytes
    }

    fn rank(&self) -> u32 {
        1
    }
}
