//! Who may access what: finds the bytes behind an address, notes each access, and finds what it has no order with.
//!
//! What it does not: touch bytes; `run` does. Accesses are judged when they run, not when they are enqueued, because
//! only then is it known which parts of a large argument a kernel uses. That loses nothing: an access carries what its
//! stream knew at the enqueue, any order of running is one that the clocks allow, and two accesses without an order are
//! found whichever ran first. Invariant: a place is given only where a live piece of memory holds the whole range.

use super::clock::Stamp;
use super::gpu::Gpu;
use super::memory::{ALIGNMENT, Content};
use super::report::{FindingKind, Party};
use super::shadow::{Access, Clash};
use super::world::World;
use crate::device::DeviceKey;

/// Who accesses memory.
pub(super) struct Actor {
    pub(super) gpu: usize,
    pub(super) stamp: Stamp,
    pub(super) access: Access,
}

impl Actor {
    /// An operation of a stream.
    pub(super) fn new(
        gpu: (usize, DeviceKey),
        stamp: Stamp,
        (stream, serial, step): (u32, u64, u64),
        name: &'static str,
    ) -> Self {
        let access = Access { gpu, slot: stamp.slot, stream, count: stamp.count, step, serial, name };
        Self { gpu: gpu.0, stamp, access }
    }
}

impl Actor {
    /// What an access is that comes too late: the end of the memory had to wait for it, or it should not be at all.
    fn late_kind(&self, end: &Access) -> FindingKind {
        let is_ordered = self.stamp.knows(end.slot, end.count) && self.access.serial > end.serial;
        if is_ordered { FindingKind::UseAfterFree } else { FindingKind::FreeWhilePending }
    }
}

/// An access as people read of it.
pub(super) fn party(access: &Access) -> Party {
    let stream = (access.slot != Stamp::HOST).then_some(access.stream);
    Party { stream, name: access.name, step: access.step }
}

/// Notes a finding with the device of the later access, and with that of the earlier one where it is another.
fn find_both(
    gpus: &mut [Option<Box<Gpu>>],
    kind: FindingKind,
    later: &Access,
    earlier: &Access,
    range: (u64, u64),
) {
    // What ran first is chance; the program says who comes first.
    let is_turned = later.serial < earlier.serial;
    let (who, other) =
        if is_turned { (party(earlier), party(later)) } else { (party(later), party(earlier)) };
    let kind = match kind {
        FindingKind::ReadAfterWrite if is_turned => FindingKind::WriteAfterRead,
        FindingKind::WriteAfterRead if is_turned => FindingKind::ReadAfterWrite,
        kind => kind,
    };
    for (index, key) in [later.gpu, earlier.gpu].into_iter().take(1 + usize::from(later.gpu != earlier.gpu)) {
        if let Some(gpu) = gpus[index].as_mut().filter(|gpu| gpu.key == key) {
            gpu.find(kind, who, Some(other), range);
        }
    }
}

fn kind_of(clash: Clash) -> FindingKind {
    match clash {
        Clash::ReadAfterWrite => FindingKind::ReadAfterWrite,
        Clash::WriteAfterRead => FindingKind::WriteAfterRead,
        Clash::WriteAfterWrite => FindingKind::WriteAfterWrite,
    }
}

impl World {
    /// Where a range really is. A range that may not be accessed is a finding and has no place.
    fn locate(&mut self, actor: &Actor, (address, bytes): (u64, u64), is_write: bool) -> Option<u64> {
        let place = self.place(actor, (address, bytes))?;
        self.allow(actor, (address, bytes), is_write).then_some(place)
    }

    /// Where a range really is, whatever its mappings allow.
    pub(super) fn place(&mut self, actor: &Actor, (address, bytes): (u64, u64)) -> Option<u64> {
        let who = party(&actor.access);
        if let Some((start, region)) = self.regions.around(address, bytes) {
            if let Some(real) = region.real(start) {
                return Some(real + (address - start));
            }
            let kind =
                region.freed.as_ref().map_or(FindingKind::UseAfterFree, |freed| actor.late_kind(freed));
            let other = region.freed.as_ref().map(party);
            self.gpu(actor.gpu).find(kind, who, other, (address, bytes));
            return None;
        }
        let is_past = self.gpus.iter().flatten().any(|gpu| gpu.space.was_used(address))
            && self.regions.around(address, 1).is_none();
        let kind = if is_past { FindingKind::UseAfterFree } else { FindingKind::InvalidAccess };
        self.gpu(actor.gpu).find(kind, who, None, (address, bytes));
        None
    }

    /// Whether the mappings behind reserved addresses allow an access; a finding if not.
    pub(super) fn allow(&mut self, actor: &Actor, (address, bytes): (u64, u64), is_write: bool) -> bool {
        let Some((start, region)) = self.regions.around(address, bytes) else { return true };
        let Content::Window(real) = region.content else { return true };
        let owner = region.gpu;
        let unmapper = region.unmapper(address, address + bytes);
        let is_allowed = self.gpus[owner]
            .as_ref()
            .is_some_and(|gpu| gpu.virtual_memory.allows(real + (address - start), bytes, is_write));
        if !is_allowed {
            let who = party(&actor.access);
            let kind = unmapper.map_or(FindingKind::InvalidAccess, |unmapper| actor.late_kind(&unmapper));
            self.gpu(actor.gpu).find(kind, who, unmapper.as_ref().map(party), (address, bytes));
        }
        is_allowed
    }

    /// Notes an access and finds what it is in no order with.
    pub(super) fn note(&mut self, actor: &Actor, (address, bytes): (u64, u64), is_write: bool) {
        if bytes == 0 {
            return;
        }
        let Self { regions, gpus, .. } = self;
        let Some((start, region)) = regions.around(address, bytes) else { return };
        let range = (address, address + bytes);
        let mut clashes: Vec<(Clash, Access)> = Vec::new();
        let mut add = |clash, other: &Access| clashes.push((clash, *other));
        match (&region.content, gpus[region.gpu].as_mut()) {
            (Content::Window(real), Some(gpu)) => {
                // A page may have several addresses. Who unmaps one asks for what came by that one.
                region.shadow.note(range, &actor.access, &actor.stamp, is_write, &mut |_, _| {});
                for (page, part) in gpu.virtual_memory.pages_behind(real + (address - start), bytes) {
                    let shadow = gpu.page_shadows.entry(page).or_default();
                    shadow.note(part, &actor.access, &actor.stamp, is_write, &mut add);
                }
            }
            _ => region.shadow.note(range, &actor.access, &actor.stamp, is_write, &mut add),
        }
        let born = region.born.filter(|born| !actor.stamp.knows(born.slot, born.count));
        let mut last = None;
        let mut tell = |kind, other: &Access| {
            // A range cut into pieces says the same of each.
            if last != Some((kind, other.step, other.slot)) {
                last = Some((kind, other.step, other.slot));
                find_both(gpus, kind, &actor.access, other, (address, bytes));
            }
        };
        if let Some(born) = born {
            tell(FindingKind::UnorderedReuse, &born);
        }
        clashes.iter().for_each(|(clash, other)| tell(kind_of(*clash), other));
    }

    /// Locates and notes in one; answers where the bytes are.
    pub(super) fn access(&mut self, actor: &Actor, range: (u64, u64), is_write: bool) -> Option<u64> {
        if range.1 == 0 {
            return None;
        }
        let real = self.locate(actor, range, is_write)?;
        self.note(actor, range, is_write);
        Some(real)
    }

    /// Finds accesses to a range that its free or unmap is in no order with.
    pub(super) fn check_end(&mut self, actor: &Actor, (address, bytes): (u64, u64)) {
        let Self { regions, gpus, .. } = self;
        let Some((_, region)) = regions.around(address, bytes) else { return };
        let mut tell = |other: &Access| {
            find_both(gpus, FindingKind::FreeWhilePending, &actor.access, other, (address, bytes));
        };
        if let Some(born) = region.born.filter(|born| !actor.stamp.knows(born.slot, born.count)) {
            tell(&born);
        }
        region.shadow.check_end((address, address + bytes), &actor.stamp, &mut tell);
    }

    /// Ends an allocation.
    pub(super) fn finish_free(&mut self, actor: &Actor, start: u64) {
        let Some(region) = self.regions.get(start) else { return };
        let (bytes, owner) = (region.bytes, region.gpu);
        self.check_end(actor, (start, bytes));
        self.values.forget_marks(start, bytes);
        let Self { regions, gpus, .. } = self;
        if let Some(gpu) = gpus[owner].as_mut() {
            match gpu.space.holds(start, bytes) {
                true => regions.bury(&mut gpu.space, start, actor.access),
                false => regions.bury_real(start, actor.access),
            }
            gpu.physical.discharge(bytes.next_multiple_of(ALIGNMENT));
        }
    }
}
