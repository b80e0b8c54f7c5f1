//! The findable blocks of one group by owner, so that a wipe or a limit touches nobody else's, and by namespace.
//!
//! Two lists for each owner: the order list, oldest first, and those set aside. Blocks of an owner without a limit
//! stand in the order list in the order of their publication. With a limit, a block that somebody holds is set aside
//! and comes back as the newest when its last holder lets go, so the oldest of the order list is the next to go.
//! Blocks that were held when the limit came stand in the order list, and some that were set aside before the limit
//! was lifted may be cached: a new limit counts once each stands where it belongs (`quota`). One list for each
//! namespace, in the order of publication. A block's links in both lie together: it comes and goes in both.
//! Invariants: each findable block stands in exactly one list of its owner and in that of its namespace; where a limit
//! counts, those of the order list are the cached ones. Every call is O(1), or O(blocks that it is given).

use crate::error::{Error, Result};
use crate::sys::prefetch;
use crate::sys::reserve::{Zeroed, filled, room};

/// First of the two ends of the order list among an owner's words; ends are block + 1, 0 for none.
const ORDER: usize = 0;
/// First of the two ends of the list of those set aside.
const ASIDE: usize = 2;
/// Words of an owner that are ends.
const ENDS: usize = 4;
/// Blocks that the policy may evict.
const CACHED: usize = 4;

/// Most blocks that leave their lists together.
pub(super) const LEAVING_MOST: usize = 64;

/// Which of a block's links: those in a list of its owner, or those in the list of its namespace.
const OWNER: usize = 0;
const NAMESPACE: usize = 1;

/// Neighbours of a block, by list: + 1, 0 for none.
#[derive(Clone, Copy)]
struct Links {
    before: [u32; 2],
    after: [u32; 2],
}

const UNLISTED: Links = Links { before: [0; 2], after: [0; 2] };

/// A stretch of the lists of an owner and a namespace: its first and its last block in each, + 1.
#[derive(Clone, Copy)]
struct Piece {
    owner: u32,
    namespace: u32,
    front: [u32; 2],
    back: [u32; 2],
}

/// The lists of all owners and namespaces.
pub(super) struct OwnerLists {
    /// Pages come as owners do.
    owners: Zeroed<[u32; 5]>,
    /// By namespace: the two ends of its list.
    namespaces: Zeroed<[u32; 2]>,
    links: Vec<Links>,
    /// What is about to leave its lists.
    leaving: Vec<Piece>,
}

/// Puts a block at the end of a list, of which these are the two ends.
#[inline]
fn append(links: &mut [Links], side: usize, ends: &mut [u32], block: u32) {
    let tail = std::mem::replace(&mut ends[1], block + 1);
    match tail {
        0 => ends[0] = block + 1,
        tail => links[tail as usize - 1].after[side] = block + 1,
    }
    let own = &mut links[block as usize];
    (own.before[side], own.after[side]) = (tail, 0);
}

/// Closes the gap that a stretch from `front` to `back` leaves in one of the lists with these ends, or puts a block
/// there.
#[inline]
fn close(links: &mut [Links], side: usize, ends: &mut [u32], (front, back): (u32, u32), new: Option<u32>) {
    let (before, after) = (links[front as usize - 1].before[side], links[back as usize - 1].after[side]);
    // Only an end of a list tells which list it is, and only there it matters: the first one, or else the last.
    let last_list = ends.len() - 2;
    match before {
        0 if ends[0] == front => ends[0] = new.unwrap_or(after),
        0 => ends[last_list] = new.unwrap_or(after),
        before => links[before as usize - 1].after[side] = new.unwrap_or(after),
    }
    match after {
        0 if ends[1] == back => ends[1] = new.unwrap_or(before),
        0 => ends[last_list + 1] = new.unwrap_or(before),
        after => links[after as usize - 1].before[side] = new.unwrap_or(before),
    }
}

impl OwnerLists {
    pub(super) fn new(blocks: u32, owners: u32, namespaces: u32) -> Result<Self> {
        Ok(Self {
            owners: Zeroed::new(owners as usize)?,
            namespaces: Zeroed::new(namespaces as usize)?,
            links: filled(blocks as usize, UNLISTED)?,
            leaving: room(LEAVING_MOST)?,
        })
    }

    /// Takes a block out of the list of its owner in which it is.
    fn unlink_from_owner(&mut self, owner: u32, block: u32) {
        let ends = &mut self.owners[owner as usize][..ENDS];
        close(&mut self.links, OWNER, ends, (block + 1, block + 1), None);
    }

    fn push_to(&mut self, owner: u32, list: usize, block: u32) {
        let ends = &mut self.owners[owner as usize][list..list + 2];
        append(&mut self.links, OWNER, ends, block);
    }

    /// Takes a block out of the lists in which it is.
    pub(super) fn unlink(&mut self, owner: u32, namespace: u32, block: u32) {
        let both = [block + 1; 2];
        self.cut(&Piece { owner, namespace, front: both, back: both });
    }

    fn cut(&mut self, piece: &Piece) {
        let of_owner = &mut self.owners[piece.owner as usize][..ENDS];
        close(&mut self.links, OWNER, of_owner, (piece.front[OWNER], piece.back[OWNER]), None);
        let of_namespace = &mut self.namespaces[piece.namespace as usize];
        close(
            &mut self.links,
            NAMESPACE,
            of_namespace,
            (piece.front[NAMESPACE], piece.back[NAMESPACE]),
            None,
        );
    }

    /// Several blocks of one owner and namespace are about to leave their lists: those of which each stands beside the
    /// one before it, in both lists, as one piece. Has fetched what `leave` then reads. Until then at most
    /// [`LEAVING_MOST`] blocks are prepared, whosesoever.
    pub(super) fn prepare_to_leave(&mut self, owner: u32, namespace: u32, blocks: &[u32]) {
        let mut blocks = blocks.iter();
        let mut next = blocks.next();
        while let Some(&first) = next {
            let Links { mut before, mut after } = self.links[first as usize];
            let (mut front, mut back) = ([first + 1; 2], [first + 1; 2]);
            next = blocks.next();
            while let Some(&block) = next {
                let (place, links) = ([block + 1; 2], &self.links[block as usize]);
                if before == place {
                    (front, before) = (place, links.before);
                } else if after == place {
                    (back, after) = (place, links.after);
                } else if before[OWNER] == block + 1 && after[NAMESPACE] == block + 1 {
                    (front[OWNER], before[OWNER]) = (block + 1, links.before[OWNER]);
                    (back[NAMESPACE], after[NAMESPACE]) = (block + 1, links.after[NAMESPACE]);
                } else if after[OWNER] == block + 1 && before[NAMESPACE] == block + 1 {
                    (back[OWNER], after[OWNER]) = (block + 1, links.after[OWNER]);
                    (front[NAMESPACE], before[NAMESPACE]) = (block + 1, links.before[NAMESPACE]);
                } else {
                    break;
                }
                next = blocks.next();
            }
            before.into_iter().chain(after).for_each(|at| self.fetch_place(at));
            self.leaving.push(Piece { owner, namespace, front, back });
        }
    }

    /// Takes the blocks that were prepared for it out of the lists in which they are.
    pub(super) fn leave(&mut self) {
        while let Some(piece) = self.leaving.pop() {
            self.cut(&piece);
        }
    }

    /// Puts a block that is in no list in the place of one that is.
    pub(super) fn replace(&mut self, owner: u32, namespace: u32, from: u32, to: u32) {
        self.links[to as usize] = self.links[from as usize];
        let (place, new) = ((from + 1, from + 1), Some(to + 1));
        close(&mut self.links, OWNER, &mut self.owners[owner as usize][..ENDS], place, new);
        close(&mut self.links, NAMESPACE, &mut self.namespaces[namespace as usize], place, new);
    }

    /// A block becomes findable.
    pub(super) fn push(&mut self, owner: u32, namespace: u32, block: u32) {
        self.push_to(owner, ORDER, block);
        append(&mut self.links, NAMESPACE, &mut self.namespaces[namespace as usize], block);
    }

    /// A listed block is held: it is not to be met in the order list.
    pub(super) fn set_aside(&mut self, owner: u32, block: u32) {
        self.unlink_from_owner(owner, block);
        self.push_to(owner, ASIDE, block);
    }

    /// A listed block becomes the newest of its owner.
    pub(super) fn renew(&mut self, owner: u32, block: u32) {
        self.unlink_from_owner(owner, block);
        self.push_to(owner, ORDER, block);
    }

    /// The oldest of the order list.
    pub(super) fn oldest(&self, owner: u32) -> Option<u32> {
        self.owners[owner as usize][ORDER].checked_sub(1)
    }

    /// The oldest and the newest of the order list, or of those set aside.
    pub(super) fn ends(&self, owner: u32, is_aside: bool) -> Option<(u32, u32)> {
        let first = if is_aside { ASIDE } else { ORDER };
        let ends = &self.owners[owner as usize][first..];
        Some((ends[0].checked_sub(1)?, ends[1].checked_sub(1)?))
    }

    /// The oldest of a namespace.
    pub(super) fn oldest_in(&self, namespace: u32) -> Option<u32> {
        self.namespaces[namespace as usize][0].checked_sub(1)
    }

    /// Those set aside go back into the empty order list: some were released while the owner had no limit.
    pub(super) fn take_back(&mut self, owner: u32) {
        let ends = &mut self.owners[owner as usize];
        debug_assert_eq!(ends[ORDER], 0, "the order list is empty");
        (ends[ORDER], ends[ORDER + 1]) = (ends[ASIDE], ends[ASIDE + 1]);
        (ends[ASIDE], ends[ASIDE + 1]) = (0, 0);
    }

    /// Any block of the owner.
    pub(super) fn any(&self, owner: u32) -> Option<u32> {
        let ends = &self.owners[owner as usize];
        ends[ORDER].checked_sub(1).or(ends[ASIDE].checked_sub(1))
    }

    pub(super) fn cached(&self, owner: u32) -> u32 {
        self.owners[owner as usize][CACHED]
    }

    pub(super) fn add_cached(&mut self, owner: u32, count: i64) {
        let cached = &mut self.owners[owner as usize][CACHED];
        *cached = cached.wrapping_add_signed(count as i32);
    }

    /// Has the links of a block fetched.
    pub(super) fn fetch(&self, block: u32) {
        prefetch::prefetch(&self.links, block as usize);
    }

    /// The same of several that lie in a row.
    pub(super) fn fetch_all(&self, blocks: std::ops::Range<usize>) {
        prefetch::prefetch_all(&self.links, blocks);
    }

    /// The same of its neighbours, once its own are there.
    pub(super) fn fetch_neighbours(&self, block: u32) {
        let Links { before, after } = self.links[block as usize];
        before.into_iter().chain(after).for_each(|at| self.fetch_place(at));
    }

    #[inline]
    fn fetch_place(&self, at: u32) {
        prefetch::prefetch(&self.links, (at as usize).wrapping_sub(1));
    }

    pub(super) fn bytes(&self) -> u64 {
        let ends = size_of_val(&*self.owners) + size_of_val(&*self.namespaces);
        (self.links.len() * size_of::<Links>() + ends) as u64
    }

    /// Walks both lists of an owner, giving each block to `visit`.
    pub(super) fn validate(&self, owner: u32, mut visit: impl FnMut(u32)) -> Result<()> {
        let ends = &self.owners[owner as usize][..ENDS];
        ends.chunks_exact(2).try_for_each(|ends| {
            self.validate_list(OWNER, ends, &mut visit)
                .ok_or_else(|| Error::internal(format!("a list of owner {owner} is broken")))
        })
    }

    /// Walks the order list of an owner, giving each block to `visit`.
    pub(super) fn validate_order(&self, owner: u32, mut visit: impl FnMut(u32)) -> Result<()> {
        self.validate_list(OWNER, &self.owners[owner as usize][ORDER..ASIDE], &mut visit)
            .ok_or_else(|| Error::internal(format!("the order list of owner {owner} is broken")))
    }

    /// Walks the list of a namespace, giving each block to `visit`.
    pub(super) fn validate_in(&self, namespace: u32, mut visit: impl FnMut(u32)) -> Result<()> {
        self.validate_list(NAMESPACE, &self.namespaces[namespace as usize], &mut visit)
            .ok_or_else(|| Error::internal(format!("the list of namespace {namespace} is broken")))
    }

    /// Nothing if a list is broken or does not end at its tail.
    fn validate_list(&self, side: usize, ends: &[u32], visit: &mut impl FnMut(u32)) -> Option<()> {
        let (mut at, mut before, mut seen) = (ends[0], 0, 0);
        while at != 0 {
            seen += 1;
            let links = &self.links[at as usize - 1];
            if seen > self.links.len() || links.before[side] != before {
                return None;
            }
            visit(at - 1);
            (before, at) = (at, links.after[side]);
        }
        (ends[1] == before).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that stands in the lists of owner 1, and of namespaces 0 and 1.
    fn listed(lists: &OwnerLists) -> [Vec<u32>; 3] {
        let mut found = [const { Vec::new() }; 3];
        lists.validate(1, |block| found[0].push(block)).unwrap();
        for namespace in 0..2 {
            lists.validate_in(namespace, |block| found[1 + namespace as usize].push(block)).unwrap();
        }
        found
    }

    /// Pieces of lists, out of order, over both lists of an owner and over their ends, in two namespaces, in lists of
    /// owners that stand in the other order than those of namespaces, against single blocks.
    #[test]
    fn several_blocks_leave_their_lists_as_single_ones_do() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..4000 {
            let count = random.u32(1..24);
            let [mut one, mut other] = [(); 2].map(|()| OwnerLists::new(24, 2, 2).unwrap());
            let (mut namespaces, often) = (Vec::new(), random.u8(1..9));
            for block in 0..count {
                let is_aside = random.u8(0..4) == 0;
                namespaces.push(u32::from(random.u8(0..often) == 0));
                for lists in [&mut one, &mut other] {
                    lists.push(1, namespaces[block as usize], block);
                    if is_aside {
                        lists.set_aside(1, block);
                    }
                }
            }
            if random.bool() {
                // Released leaf first by an owner with a limit.
                for block in (0..count).rev() {
                    one.renew(1, block);
                    other.renew(1, block);
                }
            }
            let mut gone: Vec<u32> = (0..count).filter(|_| random.u8(0..3) > 0).collect();
            match random.u8(0..3) {
                0 => gone.reverse(),
                1 => random.shuffle(&mut gone),
                _ => {}
            }
            gone.iter().for_each(|&block| one.unlink(1, namespaces[block as usize], block));
            for of_one in gone.chunk_by(|&a, &b| namespaces[a as usize] == namespaces[b as usize]) {
                other.prepare_to_leave(1, namespaces[of_one[0] as usize], of_one);
                if random.bool() {
                    other.leave();
                }
            }
            other.leave();
            assert_eq!(listed(&one), listed(&other), "without {gone:?} of {count}");
            assert_eq!(listed(&one)[0].len() + gone.len(), count as usize);
        }
    }

    #[test]
    fn blocks_that_go_in_a_row_are_one_piece_whichever_way_their_lists_run() {
        for is_renewed in [false, true] {
            let mut lists = OwnerLists::new(24, 2, 2).unwrap();
            (0..20).for_each(|block| lists.push(1, 0, block));
            if is_renewed {
                (0..20).rev().for_each(|block| lists.renew(1, block));
            }
            for row in [[5, 6, 7, 8], [16, 15, 14, 13]] {
                lists.prepare_to_leave(1, 0, &row);
                assert_eq!(lists.leaving.len(), 1);
                lists.leave();
            }
            assert_eq!(listed(&lists)[1], [0, 1, 2, 3, 4, 9, 10, 11, 12, 17, 18, 19]);
        }
    }
}
