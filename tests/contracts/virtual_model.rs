//! Random virtual memory operations against a naive model: a page table in a map.

use std::collections::HashMap;

use fastrand::Rng;
use kavern::device::{Access, Device, DeviceSlice, Page};

use super::support::{assert_free, each};

const UNITS: u64 = 48;
const PAGES: usize = 24;
const OPERATIONS: u32 = 20_000;

struct ModelPage {
    units: u64,
    is_released: bool,
    mapped_count: u64,
    /// What was last written to each unit.
    content: Vec<Option<u64>>,
}

/// One unit of addresses: the mapping that covers it.
#[derive(Clone, Copy)]
struct Cell {
    page: u64,
    /// Which unit of the page.
    unit: u64,
    /// Length of the whole mapping.
    units: u64,
    access: Access,
}

#[derive(Default)]
struct Model {
    pages: HashMap<u64, ModelPage>,
    table: HashMap<u64, Cell>,
}

impl Model {
    fn used_units(&self) -> u64 {
        self.pages.values().map(|page| page.units).sum()
    }

    /// Whether the units are exactly some whole mappings.
    fn is_covered(&self, first: u64, count: u64) -> bool {
        let mut next = first;
        while next < first + count {
            match self.table.get(&next) {
                Some(cell) if cell.unit == 0 => next += cell.units,
                _ => return false,
            }
        }
        count > 0 && next == first + count
    }

    fn can_map(&self, first: u64, count: u64, page: u64) -> bool {
        let fits = self.pages.get(&page).is_some_and(|page| !page.is_released && page.units == count);
        fits && (first..first + count).all(|unit| !self.table.contains_key(&unit))
    }

    fn map(&mut self, first: u64, page: u64) {
        let state = self.pages.get_mut(&page).unwrap();
        state.mapped_count += 1;
        for unit in 0..state.units {
            self.table.insert(first + unit, Cell { page, unit, units: state.units, access: Access::None });
        }
    }

    fn unmap(&mut self, first: u64, count: u64) {
        for unit in first..first + count {
            let cell = self.table.remove(&unit).unwrap();
            if cell.unit == 0 {
                self.pages.get_mut(&cell.page).unwrap().mapped_count -= 1;
                self.drop_if_unused(cell.page);
            }
        }
    }

    fn drop_if_unused(&mut self, page: u64) {
        if self.pages.get(&page).is_some_and(|page| page.is_released && page.mapped_count == 0) {
            self.pages.remove(&page);
        }
    }
}

struct Player<'a> {
    device: &'a dyn Device,
    range: DeviceSlice,
    unit_bytes: u64,
    total_free: u64,
    /// Live and some released pages, so that stale ones are tried too.
    known: Vec<u64>,
    model: Model,
    random: Rng,
}

impl Player<'_> {
    fn part(&self, first: u64, count: u64) -> DeviceSlice {
        self.range.part(first * self.unit_bytes, count * self.unit_bytes).unwrap()
    }

    fn some_page(&mut self) -> u64 {
        if self.known.is_empty() { 0 } else { self.known[self.random.usize(..self.known.len())] }
    }

    /// Often a real mapping, sometimes anything.
    fn some_range(&mut self) -> (u64, u64) {
        let first = self.random.u64(..UNITS);
        if self.random.u32(..4) > 0
            && let Some(cell) = self.model.table.get(&first)
        {
            return (first - cell.unit, cell.units);
        }
        (first, self.random.u64(0..=(UNITS - first).min(6)))
    }

    fn play(&mut self) {
        match self.random.u32(..12) {
            0 => self.create(),
            1 => self.release(),
            2..=4 => self.map(),
            5 => self.unmap(),
            6..=7 => self.set_access(),
            _ => self.touch(),
        }
        assert_free(self.device, self.total_free - self.model.used_units() * self.unit_bytes);
    }

    fn create(&mut self) {
        if self.model.pages.len() >= PAGES {
            return;
        }
        let units = self.random.u64(1..=3);
        let page = self.device.page_create(units * self.unit_bytes).unwrap().0;
        let content = vec![None; units as usize];
        let state = ModelPage { units, is_released: false, mapped_count: 0, content };
        assert!(self.model.pages.insert(page, state).is_none(), "a live page was made twice");
        self.known.push(page);
        if self.known.len() > 2 * PAGES {
            let model = &self.model;
            self.known.retain(|page| model.pages.get(page).is_some_and(|page| !page.is_released));
        }
    }

    fn release(&mut self) {
        let page = self.some_page();
        let is_right = self.model.pages.get(&page).is_some_and(|page| !page.is_released);
        assert_eq!(self.device.page_release(Page(page)).is_ok(), is_right);
        if is_right {
            self.model.pages.get_mut(&page).unwrap().is_released = true;
            self.model.drop_if_unused(page);
        }
    }

    fn map(&mut self) {
        let page = self.some_page();
        let units = self.model.pages.get(&page).map_or(1, |page| page.units);
        let count = if self.random.u32(..8) == 0 { self.random.u64(0..=3) } else { units };
        let first = self.random.u64(..=UNITS - count);
        let is_right = self.model.can_map(first, count, page);
        assert_eq!(self.device.virtual_map(self.part(first, count), Page(page)).is_ok(), is_right);
        if is_right {
            self.model.map(first, page);
        }
    }

    fn unmap(&mut self) {
        let (first, count) = self.some_range();
        let is_right = self.model.is_covered(first, count);
        assert_eq!(self.device.virtual_unmap(self.part(first, count)).is_ok(), is_right);
        if is_right {
            self.model.unmap(first, count);
        }
    }

    fn set_access(&mut self) {
        let (first, count) = self.some_range();
        let access =
            [Access::None, Access::Read, Access::ReadWrite, Access::ReadWrite][self.random.usize(..4)];
        let is_right = self.model.is_covered(first, count);
        assert_eq!(self.device.virtual_set_access(self.part(first, count), access).is_ok(), is_right);
        if is_right {
            for unit in first..first + count {
                self.model.table.get_mut(&unit).unwrap().access = access;
            }
        }
    }

    /// Reads or writes eight bytes of a unit that allows it.
    fn touch(&mut self) {
        let unit = self.random.u64(..UNITS);
        let Some(cell) = self.model.table.get(&unit).copied() else { return };
        // Each unit has one place for its number, at its end, so that wrong offsets show.
        let place = self.range.part((unit + 1) * self.unit_bytes - 8, 8).unwrap();
        let content = &mut self.model.pages.get_mut(&cell.page).unwrap().content[cell.unit as usize];
        if cell.access == Access::ReadWrite && self.random.bool() {
            let number = self.random.u64(..);
            self.device.write(place, &number.to_le_bytes()).unwrap();
            *content = Some(number);
        } else if cell.access != Access::None
            && let Some(expected) = *content
        {
            let mut bytes = [0; 8];
            self.device.read(place, &mut bytes).unwrap();
            assert_eq!(u64::from_le_bytes(bytes), expected);
        }
    }
}

#[test]
fn random_operations_agree_with_a_page_table_in_a_map() {
    each(|subject| {
        let device = subject.open();
        if !device.description().capabilities.virtual_memory {
            return;
        }
        let seed = std::env::var("KAVERN_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        let unit_bytes = device.description().page_bytes;
        let total_free = device.memory_info().unwrap().free_bytes;
        let mut player = Player {
            device: &*device,
            range: device.virtual_reserve(UNITS * unit_bytes).unwrap(),
            unit_bytes,
            total_free,
            known: Vec::new(),
            model: Model::default(),
            random: Rng::with_seed(seed),
        };
        for operation in 0..OPERATIONS {
            let play = std::panic::AssertUnwindSafe(|| player.play());
            if let Err(panic) = std::panic::catch_unwind(play) {
                panic!("operation {operation} of KAVERN_SEED={seed}: {:?}", panic.downcast_ref::<String>());
            }
        }
        // What is left is taken apart in the order of the addresses.
        while let Some(&first) = player.model.table.keys().min() {
            let units = player.model.table[&first].units;
            device.virtual_unmap(player.part(first, units)).unwrap();
            player.model.unmap(first, units);
        }
        for page in std::mem::take(&mut player.model.pages).into_keys() {
            device.page_release(Page(page)).unwrap();
        }
        device.virtual_release(player.range).unwrap();
        assert_free(&*device, total_free);
    });
}
