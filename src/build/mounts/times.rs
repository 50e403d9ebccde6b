//! Times that follow content: with what times a step that uses cache mounts sees its other files.
//!
//! Compilers and `make` compare the times of what they made, which is in the mount, with those of what they made it from,
//! which is not. So a path that is what it was when a step that used the mount last looked at it keeps the time that it was
//! shown with then; everything else is shown as of now, which is later than everything in the mount.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::layer::Timestamp;
use crate::snapshot::{Identity, Ledger, Sight, identity};
use crate::trace;
use crate::tree::{Child, Look, Tree};

/// What is recorded of a path that is not there: nothing is the same as that.
pub(super) const ABSENT: Identity = [0; 16];

/// What one mount has to say about times.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) ledger: Arc<Ledger>,
    /// Nothing in the mount is later.
    pub(crate) horizon: Timestamp,
}

impl Known {
    /// Of a mount with files that nobody knows anything of.
    pub(crate) fn unknown() -> Self {
        let ledger = Ledger { is_partial: true, ..Ledger::default() };
        Self { ledger: Arc::new(ledger), horizon: Timestamp { seconds: i64::MAX, nanos: 0 } }
    }
}

/// A tree that the step is shown.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) tree: Arc<Tree>,
    /// Where in the step it is, without the slash at the beginning: empty for the root.
    pub(crate) target: Vec<u8>,
    /// What of the tree is there: empty for all of it.
    pub(crate) source: Vec<u8>,
    /// Which of the tree's layers were copied and not made by commands; `None` if all of it was.
    pub(crate) copied: Option<Vec<bool>>,
}

/// The times that a step sees.
#[derive(Debug)]
pub(crate) struct ContentTimes {
    /// When the step began: later than anything in its mounts.
    now: Timestamp,
    /// Of mounts that something is in.
    known: Vec<Known>,
    /// First the tree that the step starts from, then what its mounts show.
    places: Vec<Place>,
}

impl ContentTimes {
    pub(crate) fn new(now: Timestamp, known: Vec<Known>, places: Vec<Place>) -> Arc<Self> {
        Arc::new(Self { now, known, places })
    }

    /// Those of one of the trees.
    pub(crate) fn of(self: &Arc<Self>, place: usize) -> Arc<dyn trace::Times> {
        Arc::new(PlaceTimes { times: Arc::clone(self), place })
    }

    /// Whether something is to be shown as of now that whoever counts whole seconds could not tell from what is older: busybox's
    /// `test` does, and what Python compiles has them in it.
    pub(crate) fn is_too_soon(&self) -> bool {
        let this_second = |time: Timestamp| time.seconds >= self.now.seconds;
        let is_new = |path: &[u8], sight: &Sight| {
            self.find(path).is_some_and(|child| identity(&child) != sight.identity)
        };
        let is_near = self.known.iter().any(|known| this_second(known.horizon));
        let mut sights = self.known.iter().flat_map(|known| &known.ledger.sights);
        if sights.any(|(path, sight)| (is_near || this_second(sight.time)) && is_new(path, sight)) {
            return true;
        }
        is_near && self.places.iter().any(|place| self.has_unknown(place))
    }

    /// Whether something was copied that is in no ledger.
    fn has_unknown(&self, place: &Place) -> bool {
        place.tree.walk(&place.source).any(|(path, node)| {
            place.is_copied(node.node.origin.layer)
                && place.shown_at(&path).is_some_and(|shown| {
                    self.known.iter().any(|known| !known.ledger.sights.contains_key(&shown))
                })
        })
    }

    /// What a step has seen by these looks, one list for each tree; and how many files of it are new to the mounts.
    pub(crate) fn seen<'l>(
        &self,
        looks: impl IntoIterator<Item = &'l BTreeMap<Vec<u8>, Look>>,
    ) -> (BTreeMap<Vec<u8>, Sight>, usize) {
        let mut seen = BTreeMap::new();
        let mut new = 0;
        for (number, (place, looks)) in self.places.iter().zip(looks).enumerate() {
            for path in looks.keys() {
                let Some(shown) = place.shown_at(path) else { continue };
                if self.place_of(&shown).is_none_or(|(found, _)| found != number) {
                    continue;
                }
                let sight = match child_at(&place.tree, path) {
                    Some((child, names)) => {
                        let time = self.time(number, path, &child, names);
                        new += usize::from(time == self.now && !child.node().is_directory());
                        Sight { identity: identity(&child), time }
                    }
                    None => Sight { identity: ABSENT, time: self.now },
                };
                seen.insert(shown, sight);
            }
        }
        (seen, if self.known.is_empty() { 0 } else { new })
    }

    /// Brings a mount's ledger up to date after a step has used it that has `seen` this.
    pub(crate) fn note(&self, ledger: &mut Ledger, seen: &BTreeMap<Vec<u8>, Sight>) {
        for (path, sight) in &mut ledger.sights {
            // Whether somebody looked or not: what is gone is new when it comes back.
            if sight.identity != ABSENT && !seen.contains_key(path) && self.find(path).is_none() {
                *sight = Sight { identity: ABSENT, time: self.now };
            }
        }
        ledger.sights.extend(seen.iter().map(|(path, sight)| (path.clone(), *sight)));
    }

    fn find(&self, shown: &[u8]) -> Option<Child> {
        let (place, path) = self.place_of(shown)?;
        Some(child_at(&self.places[place].tree, &path)?.0)
    }

    /// Which tree has what the step sees at a path, and where in it.
    fn place_of(&self, shown: &[u8]) -> Option<(usize, Vec<u8>)> {
        let places = self.places.iter().enumerate();
        let found = places.filter(|(_, place)| is_at_or_below(shown, &place.target));
        // The later of two mounts at one place is seen.
        let (number, place) = found.max_by_key(|(_, place)| place.target.len())?;
        let rest = &shown[place.target.len()..];
        let rest = rest.strip_prefix(b"/").unwrap_or(rest);
        let path = [&place.source, rest].into_iter().filter(|part| !part.is_empty()).collect::<Vec<&[u8]>>();
        Some((number, path.join(&b'/')))
    }

    fn time(&self, place: usize, path: &[u8], child: &Child, names: u32) -> Timestamp {
        let place = &self.places[place];
        let node = child.node();
        let Some(shown) = place.shown_at(path) else { return node.metadata.mtime };
        let own = node.metadata.mtime.min(self.now);
        let is_copied = place.is_copied(node.origin.layer);
        let identity = identity(child);
        let mut kept: Option<Timestamp> = None;
        // It must be later than what may have been made from something else.
        let mut limit: Option<Timestamp> = self.known.is_empty().then_some(self.now).filter(|_| is_copied);
        for known in &self.known {
            match known.ledger.sights.get(&shown) {
                // Of several names, only the one by which it was found first is known.
                Some(sight) if sight.identity == identity && names == 1 => kept = kept.max(Some(sight.time)),
                Some(_) => limit = limit.max(Some(known.horizon)),
                None if is_copied || known.ledger.is_partial || self.is_new_in(known, &shown) => {
                    limit = limit.max(Some(known.horizon));
                }
                // Nobody has ever looked whether it is there.
                None => {}
            }
        }
        match (kept, limit) {
            (Some(time), limit) if limit.is_none_or(|limit| time.seconds > limit.seconds) => time,
            (None, None) => own,
            _ => self.now,
        }
    }

    /// Whether a path that nobody looked at may not have been there when somebody looked what is.
    fn is_new_in(&self, known: &Known, shown: &[u8]) -> bool {
        let mut above = shown;
        while !above.is_empty() {
            above = above.iter().rposition(|byte| *byte == b'/').map_or(&[][..], |slash| &above[..slash]);
            if let Some(sight) = known.ledger.sights.get(above) {
                return self.find(above).is_none_or(|child| identity(&child) != sight.identity);
            }
        }
        false
    }
}

impl Place {
    /// Where the step sees what is at `path` of the tree; `None` if it does not see it.
    fn shown_at(&self, path: &[u8]) -> Option<Vec<u8>> {
        if !is_at_or_below(path, &self.source) {
            return None;
        }
        let rest = &path[self.source.len()..];
        let rest = rest.strip_prefix(b"/").unwrap_or(rest);
        let parts = [&self.target[..], rest].into_iter().filter(|part| !part.is_empty());
        Some(parts.collect::<Vec<&[u8]>>().join(&b'/'))
    }

    fn is_copied(&self, layer: u32) -> bool {
        let copied = self.copied.as_ref();
        copied.is_none_or(|copied| copied.get(layer as usize).copied().unwrap_or(true))
    }
}

fn is_at_or_below(path: &[u8], above: &[u8]) -> bool {
    path.strip_prefix(above).is_some_and(|rest| above.is_empty() || rest.is_empty() || rest[0] == b'/')
}

/// What is at `path`, and how many names it has.
fn child_at(tree: &Tree, path: &[u8]) -> Option<(Child, u32)> {
    let mut here = Child::Directory(tree.root());
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        let Child::Directory(directory) = &here else { return None };
        here = directory.child(name)?;
    }
    let names = match &here {
        Child::Leaf { group: Some(group), .. } => tree.names_in_group(*group),
        _ => 1,
    };
    Some((here, names))
}

#[derive(Debug)]
struct PlaceTimes {
    times: Arc<ContentTimes>,
    place: usize,
}

impl trace::Times for PlaceTimes {
    fn shown(&self, path: &[u8], child: &Child, names: u32) -> Timestamp {
        self.times.time(self.place, path, child, names)
    }
}
