//! One call at a time for each attachment: two ADDs of one interface never run together, those of different ones do.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use hypha_cni::protocol::Attachment;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// The attachments that calls are about at the moment.
#[derive(Debug, Default)]
pub struct Locks {
    held: Mutex<BTreeMap<Attachment, Arc<AsyncMutex<()>>>>,
}

/// Keeps other calls about the attachment waiting.
#[derive(Debug)]
pub struct Guard<'a> {
    locks: &'a Locks,
    attachment: Attachment,
    held: Option<OwnedMutexGuard<()>>,
}

impl Locks {
    /// Waits for the calls about the same attachment that came before.
    pub async fn lock(&self, attachment: &Attachment) -> Guard<'_> {
        let lock = {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(held.entry(attachment.clone()).or_default())
        };
        // The guard exists before the wait: it tidies up also after one who gave up waiting.
        let mut guard = Guard { locks: self, attachment: attachment.clone(), held: None };
        guard.held = Some(lock.lock_owned().await);
        guard
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.held = None;
        let mut held = self.locks.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.get(&self.attachment).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            held.remove(&self.attachment);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn attachment(container: &str) -> Attachment {
        Attachment { container_id: container.into(), ifname: "eth0".into(), network: "hypha".into() }
    }

    #[tokio::test]
    async fn only_the_same_attachment_waits() {
        let locks = Locks::default();
        let waits = |name| locks.lock(&attachment(name)).now_or_never().is_none();
        let first = locks.lock(&attachment("a")).await;
        assert!(!waits("b"), "another one");
        assert!(waits("a"), "the same one");
        drop(first);
        assert!(!waits("a"), "after the first ended");
        assert!(locks.held.lock().unwrap().is_empty(), "nothing is kept");
    }
}
