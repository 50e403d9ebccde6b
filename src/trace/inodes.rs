//! The numbers that the kernel knows the nodes of a tree by, and what was looked at of each.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use crate::tree::{Child, DirHandle, Look, Node, Tree, child_path};

/// The number of the root.
pub(super) const ROOT: u64 = 1;

/// A node that the kernel may ask for.
#[derive(Debug)]
pub(super) struct Inode {
    /// The name by which it was found first.
    pub(super) path: Vec<u8>,
    pub(super) child: Child,
    /// How many names it has.
    pub(super) nlink: u32,
    looked: AtomicU8,
    /// What the program is called that read it, or listed it, first.
    reader: OnceLock<String>,
    /// The names that were looked up, if it has several.
    names: Mutex<BTreeSet<Vec<u8>>>,
}

impl Inode {
    pub(super) fn node(&self) -> &Node {
        self.child.node()
    }

    pub(super) fn directory(&self) -> Option<&DirHandle> {
        match &self.child {
            Child::Directory(dir) => Some(dir),
            Child::Leaf { .. } => None,
        }
    }

    /// Takes note that somebody looked.
    pub(super) fn look(&self, look: Look) {
        self.looked.fetch_or(look.bits(), Ordering::Relaxed);
    }

    /// Takes note that a process looked, and who it was if it was the first one.
    pub(super) fn look_by(&self, look: Look, process: u32) {
        let before = self.looked.fetch_or(look.bits(), Ordering::Relaxed);
        if before & look.bits() != look.bits()
            && let Some(name) = program(process)
        {
            let _ = self.reader.set(name);
        }
    }
}

/// All inodes that were given out.
#[derive(Debug)]
pub(super) struct Inodes {
    table: RwLock<Table>,
    /// Paths that were looked up and are not there.
    absent: Mutex<BTreeSet<Vec<u8>>>,
    /// How many names each hard-link group has.
    tree: Tree,
}

#[derive(Debug, Default)]
struct Table {
    /// The inode with the number of its place, less one.
    inodes: Vec<Arc<Inode>>,
    /// By directory and name.
    children: HashMap<(u64, Vec<u8>), u64>,
    /// By hard-link group.
    groups: HashMap<u64, u64>,
}

impl Inodes {
    pub(super) fn new(tree: &Tree) -> Self {
        let root = Inode {
            path: Vec::new(),
            child: Child::Directory(tree.root()),
            nlink: 1,
            // The kernel has it without asking.
            looked: AtomicU8::new(Look::NODE.bits()),
            reader: OnceLock::new(),
            names: Mutex::default(),
        };
        let table = Table { inodes: vec![Arc::new(root)], ..Table::default() };
        Self { table: RwLock::new(table), absent: Mutex::default(), tree: tree.clone() }
    }

    /// The inode with this number.
    pub(super) fn get(&self, number: u64) -> Option<Arc<Inode>> {
        let place = usize::try_from(number.checked_sub(1)?).ok()?;
        self.table.read().unwrap_or_else(PoisonError::into_inner).inodes.get(place).cloned()
    }

    /// Looks up a name, which is an input whether there is something or not.
    pub(super) fn look_up(&self, parent: u64, name: &[u8]) -> Option<(u64, Arc<Inode>)> {
        let dir = self.get(parent)?;
        let Some(child) = dir.directory()?.child(name) else {
            let path = child_path(&dir.path, name);
            self.absent.lock().unwrap_or_else(PoisonError::into_inner).insert(path);
            return None;
        };
        let (number, inode) = self.number((parent, &dir), name, child);
        inode.look(Look::NODE);
        if inode.nlink > 1 {
            let path = child_path(&dir.path, name);
            inode.names.lock().unwrap_or_else(PoisonError::into_inner).insert(path);
        }
        Some((number, inode))
    }

    /// The number of the node that is called `name` in a directory, whether somebody has looked at it or only seen its name.
    pub(super) fn number(&self, parent: (u64, &Inode), name: &[u8], child: Child) -> (u64, Arc<Inode>) {
        let place = (parent.0, name.to_vec());
        let known = |table: &Table, number: u64| {
            (number, Arc::clone(&table.inodes[usize::try_from(number - 1).unwrap_or_default()]))
        };
        {
            let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(number) = table.children.get(&place) {
                return known(&table, *number);
            }
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = table.children.get(&place) {
            return known(&table, *number);
        }
        let group = match &child {
            Child::Leaf { group, .. } => *group,
            Child::Directory(_) => None,
        };
        if let Some(number) = group.and_then(|group| table.groups.get(&group)).copied() {
            table.children.insert(place, number);
            return known(&table, number);
        }
        let inode = Arc::new(Inode {
            path: child_path(&parent.1.path, name),
            child,
            nlink: group.map_or(1, |group| self.tree.names_in_group(group)),
            looked: AtomicU8::new(0),
            reader: OnceLock::new(),
            names: Mutex::default(),
        });
        table.inodes.push(Arc::clone(&inode));
        let number = table.inodes.len() as u64;
        table.children.insert(place, number);
        if let Some(group) = group {
            table.groups.insert(group, number);
        }
        (number, inode)
    }

    /// What the programs are called that were the first to read a file or to list a directory, by path.
    pub(super) fn readers(&self) -> BTreeMap<Vec<u8>, String> {
        let mut readers = BTreeMap::new();
        for inode in &self.table.read().unwrap_or_else(PoisonError::into_inner).inodes {
            let Some(reader) = inode.reader.get() else { continue };
            readers.insert(inode.path.clone(), reader.clone());
            for name in &*inode.names.lock().unwrap_or_else(PoisonError::into_inner) {
                readers.insert(name.clone(), reader.clone());
            }
        }
        readers
    }

    /// All that was looked at.
    pub(super) fn looks(&self) -> BTreeMap<Vec<u8>, Look> {
        let mut looks = BTreeMap::new();
        for path in &*self.absent.lock().unwrap_or_else(PoisonError::into_inner) {
            looks.insert(path.clone(), Look::NODE);
        }
        for inode in &self.table.read().unwrap_or_else(PoisonError::into_inner).inodes {
            let Some(look) = Look::of_bits(inode.looked.load(Ordering::Relaxed)) else { continue };
            let names = inode.names.lock().unwrap_or_else(PoisonError::into_inner);
            if names.is_empty() {
                looks.insert(inode.path.clone(), look);
            }
            // What was done by one name is true of all.
            for name in &*names {
                looks.insert(name.clone(), look);
            }
        }
        looks
    }
}

thread_local! {
    /// The process that asked last, and where its name is: most often it asks again.
    static LAST: RefCell<Option<(u32, File)>> = const { RefCell::new(None) };
}

/// What the kernel calls the program that a process executes: its file's name, up to 15 bytes of it.
fn program(process: u32) -> Option<String> {
    let read = |file: &File| {
        let mut name = [0; 64];
        let length = file.read_at(&mut name, 0).ok()?;
        let name = String::from_utf8_lossy(name[..length].trim_ascii_end()).into_owned();
        (!name.is_empty()).then_some(name)
    };
    LAST.with_borrow_mut(|last| {
        // Its number may be another's by now: then the file can no longer be read.
        if let Some((known, file)) = last
            && *known == process
            && let Some(name) = read(file)
        {
            return Some(name);
        }
        let file = File::open(format!("/proc/{process}/comm")).ok()?;
        let name = read(&file);
        *last = Some((process, file));
        name
    })
}
