//! The blocks of a KV cache: who uses them, what they hold, and which is given away next.
//!
//! Knows no time and no requests. A block that nobody uses stays findable by its content until it
//! is given away; those that were let go first are given away first.

use crate::map::Map;

/// A block of the cache.
pub(super) type BlockIndex = u32;

/// No block: the end of the list of free ones.
const NONE: BlockIndex = BlockIndex::MAX;

#[derive(Clone, Copy, Debug)]
struct Block {
    /// What it holds, if others may use that, too.
    content: Option<u64>,
    users: u32,
    /// Neighbours in the list of free blocks, while it is there.
    before: BlockIndex,
    after: BlockIndex,
}

/// All blocks of one server.
#[derive(Debug)]
pub(super) struct Pool {
    blocks: Vec<Block>,
    found: Map<BlockIndex>,
    /// `None`: as many as are needed.
    limit: Option<usize>,
    /// The free block that was let go first, and last.
    first: BlockIndex,
    last: BlockIndex,
    free: usize,
}

impl Pool {
    pub(super) fn new(limit: Option<usize>) -> Self {
        Self { blocks: Vec::new(), found: Map::default(), limit, first: NONE, last: NONE, free: 0 }
    }

    /// How many blocks can be taken.
    pub(super) fn available(&self) -> usize {
        match self.limit {
            Some(limit) => self.free + limit.saturating_sub(self.blocks.len()),
            None => usize::MAX,
        }
    }

    /// How many blocks there are at most.
    pub(super) const fn limit(&self) -> usize {
        match self.limit {
            Some(limit) => limit,
            None => usize::MAX,
        }
    }

    /// How many blocks somebody uses.
    pub(super) const fn used(&self) -> usize {
        self.blocks.len() - self.free
    }

    /// How many users all blocks have together.
    pub(super) fn users(&self) -> usize {
        self.blocks.iter().map(|block| block.users as usize).sum()
    }

    /// The block that holds this, used or not.
    pub(super) fn find(&self, content: u64) -> Option<BlockIndex> {
        self.found.get(&content).copied()
    }

    /// Whether nobody uses a block.
    pub(super) fn is_free(&self, block: BlockIndex) -> bool {
        self.blocks[block as usize].users == 0
    }

    /// One user more for a block that was found.
    pub(super) fn share(&mut self, block: BlockIndex) {
        if self.is_free(block) {
            self.unlink(block);
        }
        self.blocks[block as usize].users += 1;
    }

    /// A block for new content; `None` if all are in use. Others will find it by `content`, unless
    /// they find another one already.
    pub(super) fn take(&mut self, content: Option<u64>) -> Option<BlockIndex> {
        let block = self.empty()?;
        let taken = &mut self.blocks[block as usize];
        taken.content = None;
        taken.users = 1;
        if let Some(content) = content {
            self.fill(block, content);
        }
        Some(block)
    }

    /// Others will find a block that is in use by its `content`, unless they find it already.
    pub(super) fn fill(&mut self, block: BlockIndex, content: u64) {
        let filled = &mut self.blocks[block as usize];
        if filled.content.is_none() && !self.found.contains_key(&content) {
            filled.content = Some(content);
            self.found.insert(content, block);
        }
    }

    /// One user less. Who lets go of several at once begins with the one to be given away first.
    pub(super) fn release(&mut self, block: BlockIndex) {
        let users = &mut self.blocks[block as usize].users;
        *users -= 1;
        if *users == 0 {
            self.append(block);
        }
    }

    /// What a block was to hold never came to be.
    pub(super) fn spoil(&mut self, block: BlockIndex) {
        if let Some(content) = self.blocks[block as usize].content.take() {
            self.found.remove(&content);
        }
    }

    /// Forgets what all blocks hold that nobody uses.
    pub(super) fn forget(&mut self) {
        let mut next = self.first;
        while next != NONE {
            let block = next;
            next = self.blocks[block as usize].after;
            self.spoil(block);
        }
    }

    fn empty(&mut self) -> Option<BlockIndex> {
        let unused = self.limit.is_none_or(|limit| self.blocks.len() < limit);
        // Without a limit nothing is given away that may be found again.
        let reusable = self.first != NONE
            && (self.limit.is_some() || self.blocks[self.first as usize].content.is_none());
        if unused && !(self.limit.is_none() && reusable) {
            self.blocks.push(Block { content: None, users: 0, before: NONE, after: NONE });
            return BlockIndex::try_from(self.blocks.len() - 1).ok();
        }
        reusable.then(|| {
            let block = self.first;
            self.unlink(block);
            self.spoil(block);
            block
        })
    }

    fn append(&mut self, block: BlockIndex) {
        let before = self.last;
        self.blocks[block as usize].before = before;
        self.blocks[block as usize].after = NONE;
        match self.blocks.get_mut(before as usize) {
            Some(last) => last.after = block,
            None => self.first = block,
        }
        self.last = block;
        self.free += 1;
    }

    fn unlink(&mut self, block: BlockIndex) {
        let Block { before, after, .. } = self.blocks[block as usize];
        match self.blocks.get_mut(before as usize) {
            Some(neighbour) => neighbour.after = after,
            None => self.first = after,
        }
        match self.blocks.get_mut(after as usize) {
            Some(neighbour) => neighbour.before = before,
            None => self.last = before,
        }
        self.free -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_let_go_first_is_given_away_first() {
        let mut pool = Pool::new(Some(3));
        let taken: Vec<_> = (1..=3).map(|content| pool.take(Some(content)).unwrap()).collect();
        assert_eq!((pool.available(), pool.take(Some(4))), (0, None));
        for block in [taken[1], taken[0], taken[2]] {
            pool.release(block);
        }
        // Found again, so no longer the next to go.
        pool.share(taken[1]);
        assert_eq!(pool.available(), 2);
        assert_eq!(pool.take(Some(5)), Some(taken[0]));
        assert_eq!((pool.find(1), pool.find(2)), (None, Some(taken[1])));
        assert_eq!(pool.take(Some(6)), Some(taken[2]));
        assert_eq!(pool.take(None), None);
        assert_eq!((pool.used(), pool.users()), (3, 3));
    }

    #[test]
    fn content_is_held_once() {
        let mut pool = Pool::new(Some(4));
        let first = pool.take(Some(7)).unwrap();
        let second = pool.take(Some(7)).unwrap();
        assert_eq!(pool.find(7), Some(first));
        pool.release(second);
        assert_eq!(pool.find(7), Some(first));
        pool.spoil(first);
        assert_eq!(pool.find(7), None);
    }

    #[test]
    fn without_a_limit_nothing_is_forgotten() {
        let mut pool = Pool::new(None);
        for content in 0..100 {
            let block = pool.take(Some(content)).unwrap();
            pool.release(block);
        }
        assert!((0..100).all(|content| pool.find(content).is_some()));
        let private = pool.take(None).unwrap();
        pool.release(private);
        pool.forget();
        assert!((0..100).all(|content| pool.find(content).is_none()));
        assert_eq!((pool.used(), pool.available()), (0, usize::MAX));
    }
}
