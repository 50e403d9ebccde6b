//! Users and groups by the files of the image.

use serde::{Deserialize, Serialize};

use crate::hint::Hint;

/// The largest file that is searched: entries beyond it would be an attack, not a user database.
const MAX_FILE: usize = 16 << 20;

/// Who a command runs as, in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory by `/etc/passwd`, if the user is listed there.
    pub home: Option<String>,
}

impl ResolvedUser {
    /// User 0 with group 0 and no others.
    pub fn root() -> Self {
        Self { uid: 0, gid: 0, groups: Vec::new(), home: None }
    }
}

/// A user or group that the image does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// No such name in the user database.
    #[error("unable to find user {name}: no matching entries in /etc/passwd")]
    NoUser {
        /// The name.
        name: String,
    },
    /// No such name in the group database.
    #[error("unable to find group {name}: no matching entries in /etc/group")]
    NoGroup {
        /// The name.
        name: String,
    },
    /// A number that is no id.
    #[error("the id {id} is out of range: ids go from 0 to 2147483647")]
    OutOfRange {
        /// As written.
        id: String,
    },
    /// More than a user database.
    #[error("{file} in the image is larger than 16 MiB")]
    TooLarge {
        /// Which file.
        file: &'static str,
    },
}

impl Hint for UserError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NoUser { .. } => {
                Some("create it with `RUN useradd …` before, or use a numeric id".to_owned())
            }
            Self::NoGroup { .. } => {
                Some("create it with `RUN groupadd …` before, or use a numeric id".to_owned())
            }
            _ => None,
        }
    }
}

/// Resolves the value of `USER` by the content of the image's `/etc/passwd` and `/etc/group` (empty if the
/// image has none), as BuildKit does for RUN (`executor/oci/user.go`; `moby/sys/user`, `GetExecUser`):
///
/// - a number is an id, never a name; it needs no entry and then has group 0;
/// - with a number or `root` on both sides of the colon nothing is looked up;
/// - with `user:group` that group is the only one; without, the user's own and all that list it as member;
/// - the group is one of the supplementary groups too.
pub fn resolve_user(user: &str, passwd: &[u8], group: &[u8]) -> Result<ResolvedUser, UserError> {
    check_sizes(passwd, group)?;
    let home = |uid: i64| {
        let entry = users(passwd).find(|entry| entry.uid == uid)?;
        Some(String::from_utf8_lossy(entry.home).into_owned())
    };
    if let Some((uid, gid)) = user.split_once(':')
        && let (Some(uid), Some(gid)) = (plain_id(uid), plain_id(gid))
    {
        let (uid, gid) = (in_range(uid)?, in_range(gid)?);
        return Ok(ResolvedUser { uid, gid, groups: vec![gid], home: home(uid.into()) });
    }
    // Whatever comes after a second colon counts for nothing.
    let mut parts = user.split(':');
    let user_part = parts.next().filter(|part| !part.is_empty());
    let group_part = parts.next().filter(|part| !part.is_empty());
    let number = match user_part {
        Some(part) => parse_id(part)?,
        None => Some(0),
    };
    let group_number = group_part.map(parse_id).transpose()?.flatten();
    let entry = match (number, user_part) {
        (Some(uid), _) => users(passwd).find(|entry| entry.uid == i64::from(uid)),
        (None, part) => users(passwd).find(|entry| part.is_some_and(|part| part.as_bytes() == entry.name)),
    };
    let (uid, default_gid) = match (&entry, number) {
        (Some(entry), _) => (in_range(entry.uid)?, entry.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => return Err(UserError::NoUser { name: user_part.unwrap_or_default().to_owned() }),
    };
    let mut list = Vec::new();
    let gid = match (group_part, group_number) {
        (Some(_), Some(gid)) => gid,
        (Some(name), None) => {
            let entry = groups(group).find(|entry| entry.name == name.as_bytes());
            in_range(entry.ok_or_else(|| UserError::NoGroup { name: name.to_owned() })?.gid)?
        }
        (None, _) => {
            // A line without a name has no members.
            if let Some(entry) = entry.as_ref().filter(|entry| !entry.name.is_empty()) {
                for candidate in groups(group) {
                    let member = candidate.members.split(|&byte| byte == b',').any(|name| name == entry.name);
                    if member && !list.contains(&in_range(candidate.gid)?) {
                        list.push(in_range(candidate.gid)?);
                    }
                }
            }
            in_range(default_gid)?
        }
    };
    if !list.contains(&gid) {
        list.insert(0, gid);
    }
    let home = entry.map(|entry| String::from_utf8_lossy(entry.home).into_owned());
    Ok(ResolvedUser { uid, gid, groups: list, home })
}

/// Resolves an owner of files, the value of `--chown` or the `USER` of a WORKDIR, as BuildKit does
/// (`solver/llbsolver/ops`, `readUser`; `client/llb`, `WithUser`), which is not how RUN does it:
///
/// - a number is both the user and, without a group, the group; a name has the group of its entry;
/// - a name that the image does not have is root, and a group that it does not have the user's; `unknown` is told.
pub fn resolve_owner(
    spec: &str,
    passwd: &[u8],
    group: &[u8],
    unknown: &mut dyn FnMut(UserError),
) -> Result<(u32, u32), UserError> {
    check_sizes(passwd, group)?;
    let (user_part, group_part) = split(spec);
    let (uid, mut gid) = match owner_id(user_part) {
        Some(id) => (id, id),
        None => match users(passwd).find(|entry| entry.name == user_part.as_bytes()) {
            Some(entry) => (in_range(entry.uid)?, in_range(entry.gid)?),
            None => {
                if !user_part.is_empty() {
                    unknown(UserError::NoUser { name: user_part.to_owned() });
                }
                (0, 0)
            }
        },
    };
    if let Some(name) = group_part {
        let listed = groups(group).find(|entry| entry.name == name.as_bytes()).map(|entry| entry.gid);
        gid = match (owner_id(name), listed) {
            (Some(id), _) => id,
            (None, Some(id)) => in_range(id)?,
            (None, None) => {
                unknown(UserError::NoGroup { name: name.to_owned() });
                gid
            }
        };
    }
    Ok((uid, gid))
}

/// The number that an owner is given as. What is out of the range of 32 bits with a sign is a name; -1 leaves the
/// owner of a new file, root, as it is.
fn owner_id(word: &str) -> Option<u32> {
    match word {
        "root" | "-1" => Some(0),
        _ => word.parse::<i32>().ok().map(i32::cast_unsigned),
    }
}

fn check_sizes(passwd: &[u8], group: &[u8]) -> Result<(), UserError> {
    for (file, content) in [("/etc/passwd", passwd), ("/etc/group", group)] {
        if content.len() > MAX_FILE {
            return Err(UserError::TooLarge { file });
        }
    }
    Ok(())
}

/// `user:group`; an empty group counts as none.
fn split(spec: &str) -> (&str, Option<&str>) {
    match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    }
}

/// What both sides of a colon are if nothing needs to be looked up.
fn plain_id(word: &str) -> Option<i64> {
    if word == "root" {
        return Some(0);
    }
    word.parse::<u32>().ok().filter(|_| !word.starts_with('+')).map(i64::from)
}

/// A number in the range of ids; `None` for what is not a number.
fn parse_id(word: &str) -> Result<Option<u32>, UserError> {
    let digits = word.strip_prefix(['-', '+']).unwrap_or(word);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    in_range(word.parse().unwrap_or(i64::MAX)).map(Some)
}

/// runc's limit: ids are 31 bits wide there.
fn in_range(id: i64) -> Result<u32, UserError> {
    i32::try_from(id)
        .ok()
        .and_then(|id| u32::try_from(id).ok())
        .ok_or_else(|| UserError::OutOfRange { id: id.to_string() })
}

struct UserEntry<'a> {
    name: &'a [u8],
    uid: i64,
    gid: i64,
    home: &'a [u8],
}

struct GroupEntry<'a> {
    name: &'a [u8],
    gid: i64,
    members: &'a [u8],
}

/// The lines of a passwd file. What a line lacks is empty, and what should be a number and is none is 0.
fn users(passwd: &[u8]) -> impl Iterator<Item = UserEntry<'_>> {
    lines(passwd).map(|line| {
        let mut fields = line.split(|&byte| byte == b':');
        let name = fields.next().unwrap_or_default();
        let (_, uid, gid) = (fields.next(), number(fields.next()), number(fields.next()));
        fields.next();
        UserEntry { name, uid, gid, home: fields.next().unwrap_or_default() }
    })
}

/// The lines of a group file, but for comments.
fn groups(group: &[u8]) -> impl Iterator<Item = GroupEntry<'_>> {
    lines(group).filter(|line| line[0] != b'#').map(|line| {
        let mut fields = line.split(|&byte| byte == b':');
        let name = fields.next().unwrap_or_default();
        let (_, gid) = (fields.next(), number(fields.next()));
        GroupEntry { name, gid, members: fields.next().unwrap_or_default() }
    })
}

fn lines(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    content.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty())
}

/// As Go's `Atoi` with its error ignored.
fn number(field: Option<&[u8]>) -> i64 {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    let text = field.and_then(|field| std::str::from_utf8(field).ok()).unwrap_or_default();
    match text.parse() {
        Ok(number) => number,
        Err(error) if *error.kind() == PosOverflow => i64::MAX,
        Err(error) if *error.kind() == NegOverflow => i64::MIN,
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
        # a comment\nbroken line\n\
        app:x:1000:1001:App:/home/app:/bin/sh\n\
        1234:x:77:78::/digits:/bin/sh\n";
    const GROUP: &[u8] = b"root:x:0:\nwheel:x:10:root,app\naudio:x:29:app\napp:x:1001:\n55:x:66:\n";

    #[track_caller]
    fn user(spec: &str, uid: u32, gid: u32, groups: &[u32]) {
        let found = resolve_user(spec, PASSWD, GROUP).unwrap();
        assert_eq!((found.uid, found.gid, found.groups.as_slice()), (uid, gid, groups), "{spec}");
    }

    #[test]
    fn users_as_docker_resolves_them() {
        user("app", 1000, 1001, &[1001, 10, 29]);
        user("1000", 1000, 1001, &[1001, 10, 29]);
        user("app:audio", 1000, 29, &[29]);
        user("app:7", 1000, 7, &[7]);
        user("4000", 4000, 0, &[0]);
        user("4000:5000", 4000, 5000, &[5000]);
        user("", 0, 0, &[0, 10]);
        user("root", 0, 0, &[0, 10]);
        user("app:", 1000, 1001, &[1001, 10, 29]);
        // Numbers are never names.
        user("1234", 1234, 0, &[0]);
        user("app:55", 1000, 55, &[55]);
        // So that a name which looks like a number names nothing, and `root` on both sides needs no file.
        user("+1000:+55", 1000, 55, &[55]);
        user("01000:audio", 1000, 29, &[29]);
        user("app:audio:more", 1000, 29, &[29]);
        let found = resolve_user("root:root", b"root:x:5:6::/five:/", b"root:x:9:").unwrap();
        assert_eq!((found.uid, found.gid, found.home), (0, 0, None));
        assert_eq!(resolve_user("app", PASSWD, GROUP).unwrap().home.as_deref(), Some("/home/app"));
        assert_eq!(resolve_user("4000", PASSWD, GROUP).unwrap().home, None);
    }

    #[test]
    fn unknown_names_say_which_file() {
        let error = resolve_user("nobody", PASSWD, GROUP).unwrap_err();
        assert_eq!(error.to_string(), "unable to find user nobody: no matching entries in /etc/passwd");
        let error = resolve_user("app:video", PASSWD, GROUP).unwrap_err();
        assert_eq!(error.to_string(), "unable to find group video: no matching entries in /etc/group");
        assert!(matches!(resolve_user("4294967295", PASSWD, GROUP), Err(UserError::OutOfRange { .. })));
        assert!(matches!(resolve_user("-1", PASSWD, GROUP), Err(UserError::OutOfRange { .. })));
        assert!(matches!(resolve_user("2147483648:1", PASSWD, GROUP), Err(UserError::OutOfRange { .. })));
        assert!(matches!(
            resolve_user("large", b"large:x:99999999999:1", b""),
            Err(UserError::OutOfRange { .. })
        ));
        assert!(matches!(resolve_user("app", b"", b""), Err(UserError::NoUser { .. })));
    }

    #[test]
    fn owners_as_buildkit_resolves_them() {
        let owner = |spec: &str| resolve_owner(spec, PASSWD, GROUP, &mut |_| {}).unwrap();
        assert_eq!(owner("app"), (1000, 1001));
        assert_eq!(owner("app:audio"), (1000, 29));
        assert_eq!(owner("55:66"), (55, 66));
        assert_eq!(owner("55"), (55, 55));
        assert_eq!(owner("1234:55"), (1234, 55));
        assert_eq!(owner("root"), (0, 0));
        // What is not there is root.
        assert_eq!(owner("x"), (0, 0));
        assert_eq!(owner("5:x"), (5, 5));
        assert_eq!(owner(":audio"), (0, 29));
        assert_eq!(owner("4294967295"), (0, 0));
        assert_eq!(owner("-1"), (0, 0));
        let mut told = Vec::new();
        for spec in ["app", "app:audio", "55:66", "root", ":audio", "x", "app:y", "x:y"] {
            resolve_owner(spec, PASSWD, GROUP, &mut |error| told.push(error)).unwrap();
        }
        let (user, group) =
            (UserError::NoUser { name: "x".to_owned() }, UserError::NoGroup { name: "y".to_owned() });
        assert_eq!(told, [user.clone(), group.clone(), user, group]);
    }
}
