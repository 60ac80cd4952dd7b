//! What survives a restart of the agent: one file per endpoint and the order in which addresses are reused.
//!
//! An endpoint's file is written before anything of it exists and removed after everything of it is gone, so that
//! whatever a killed agent left behind is known to the next one.

mod files;
mod ledger;
mod record;

pub use files::{Loaded, Store, StoreError};
pub use ledger::{Ledger, LedgerError};
pub use record::{Link, NamespaceId, Phase, Record, host_ifname};
