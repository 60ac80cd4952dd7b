//! One kind's objects as the agent sees them: taken as they come, forgotten when they go, and made equal to a whole list.

use std::{borrow::Borrow, collections::BTreeMap, error::Error};

/// What the agent keeps of an object of some kind.
pub trait Model: Sized + PartialEq {
    /// The kind's object.
    type Object;
    /// What identifies it within the kind.
    type Key: Ord + Clone;
    /// Why an object cannot be used.
    type Error: Error;

    /// The key of an object; `None` when it has no name.
    fn key_of(object: &Self::Object) -> Option<Self::Key>;

    /// What is kept of an object.
    ///
    /// # Errors
    /// When a part of it that the agent uses cannot be understood.
    fn read(object: &Self::Object) -> Result<(Self::Key, Self), Self::Error>;
}

/// Every object of one kind.
#[derive(Debug)]
pub struct Table<M: Model> {
    models: BTreeMap<M::Key, M>,
}

/// What a whole list changed.
#[derive(Debug)]
pub struct Reset<E> {
    /// Whether anything is other than before.
    pub changed: bool,
    /// What was wrong with single objects.
    pub errors: Vec<E>,
}

impl<M: Model> Default for Table<M> {
    fn default() -> Self {
        Self { models: BTreeMap::new() }
    }
}

impl<M: Model> Table<M> {
    /// Takes a new or changed object; tells whether anything that the agent uses changed.
    ///
    /// # Errors
    /// When the object is unusable: what was known before stays.
    pub fn apply(&mut self, object: &M::Object) -> Result<bool, M::Error> {
        let (key, model) = M::read(object)?;
        if self.models.get(&key) == Some(&model) {
            return Ok(false);
        }
        self.models.insert(key, model);
        Ok(true)
    }

    /// Forgets an object; false when it was not known.
    pub fn delete<Q: Ord + ?Sized>(&mut self, key: &Q) -> bool
    where
        M::Key: Borrow<Q>,
    {
        self.models.remove(key).is_some()
    }

    /// Keeps only what `objects` names, and takes its new state. An object that is named but unusable stays as it was.
    pub fn reset<'a>(&mut self, objects: impl IntoIterator<Item = &'a M::Object>) -> Reset<M::Error>
    where
        M::Object: 'a,
    {
        let mut before = std::mem::take(&mut self.models);
        let mut reset = Reset { changed: false, errors: Vec::new() };
        for object in objects {
            let known = M::key_of(object).and_then(|key| before.remove_entry(&key));
            let (key, model) = match (M::read(object), known) {
                (Ok((key, model)), known) => {
                    // A list may name an object twice: the second is a change of the first.
                    let known = known.map(|(_, known)| known);
                    reset.changed |= known.as_ref().or_else(|| self.models.get(&key)) != Some(&model);
                    (key, model)
                }
                (Err(error), known) => {
                    reset.errors.push(error);
                    let Some(known) = known else { continue };
                    known
                }
            };
            self.models.insert(key, model);
        }
        reset.changed |= !before.is_empty();
        reset
    }

    /// One object.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&M>
    where
        M::Key: Borrow<Q>,
    {
        self.models.get(key)
    }

    /// All of them in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &M> {
        self.models.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.models.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.models.is_empty()
    }
}
