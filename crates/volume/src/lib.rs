//! A VDI as a range of bytes: which objects a request touches and what it means for them.
//!
//! Pure values, used by the owner of a VDI's session (crate `node`), which alone orders its requests. [`pieces`]
//! cuts a byte range into one piece per object; [`BlockTable`] is the VDI's `data_vdi_id` table, loaded block by
//! block; [`plan_table_write`] says what an old client's write into the table asks for. Absent on purpose: any
//! notion of copies, messages or time.

mod pieces;
mod table;

pub use pieces::{Piece, first_piece, pieces};
pub use table::{
    BlockTable, ENTRIES_PER_BLOCK, Entry, PAGE_BLOCKS, TableChange, block_of_entry, chunk_blocks,
    place_of_block, plan_table_write, table_blocks,
};
