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
    /// Nothing where a name should be.
    #[error("`{spec}` names no user")]
    Empty {
        /// As written.
        spec: String,
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
/// image has none), as runc and Docker do:
///
/// - a name that is listed wins over a number; a number needs no entry and then has group 0;
/// - with `user:group` that group is the only one; without, the user's own and all that list it as member.
pub fn resolve_user(user: &str, passwd: &[u8], group: &[u8]) -> Result<ResolvedUser, UserError> {
    check_sizes(passwd, group)?;
    if user.is_empty() {
        return resolve_user("0", passwd, group);
    }
    let (user_part, group_part) = split(user);
    let user_part = if user_part.is_empty() { "0" } else { user_part };
    let number = parse_id(user_part)?;
    let entry = users(passwd)
        .find(|entry| entry.name == user_part.as_bytes())
        .or_else(|| number.and_then(|uid| users(passwd).find(|entry| entry.uid == uid)));
    let (uid, default_gid) = match (&entry, number) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => return Err(UserError::NoUser { name: user_part.to_owned() }),
    };
    let home = entry.as_ref().map(|entry| String::from_utf8_lossy(entry.home).into_owned());
    match group_part {
        Some(name) => Ok(ResolvedUser { uid, gid: group_id(name, group)?, groups: Vec::new(), home }),
        None => {
            let mut list = Vec::new();
            if let Some(entry) = &entry {
                for candidate in groups(group) {
                    let member = candidate.members.split(|&byte| byte == b',').any(|name| name == entry.name);
                    if member && !list.contains(&candidate.gid) {
                        list.push(candidate.gid);
                    }
                }
            }
            Ok(ResolvedUser { uid, gid: default_gid, groups: list, home })
        }
    }
}

/// Resolves the value of `--chown`: owner and group. A user without a group gets the group of the same
/// number, as in BuildKit, whatever `/etc/passwd` says.
pub fn resolve_chown(spec: &str, passwd: &[u8], group: &[u8]) -> Result<(u32, u32), UserError> {
    check_sizes(passwd, group)?;
    let (user_part, group_part) = split(spec);
    if user_part.is_empty() {
        return Err(UserError::Empty { spec: spec.to_owned() });
    }
    // Unlike in USER, a number is never looked up as a name.
    let uid = match parse_id(user_part)? {
        Some(uid) => uid,
        None => users(passwd)
            .find(|entry| entry.name == user_part.as_bytes())
            .map(|entry| entry.uid)
            .ok_or_else(|| UserError::NoUser { name: user_part.to_owned() })?,
    };
    let gid = match group_part {
        None => uid,
        Some(name) => match parse_id(name)? {
            Some(gid) => gid,
            None => group_id(name, group)?,
        },
    };
    Ok((uid, gid))
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

/// A number in the range of ids; `None` for what is not a number.
fn parse_id(word: &str) -> Result<Option<u32>, UserError> {
    let digits = word.strip_prefix('-').unwrap_or(word);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match word.parse::<u32>() {
        // runc's limit: ids are 31 bits wide there.
        Ok(id) if i32::try_from(id).is_ok() => Ok(Some(id)),
        _ => Err(UserError::OutOfRange { id: word.to_owned() }),
    }
}

fn group_id(name: &str, group: &[u8]) -> Result<u32, UserError> {
    if let Some(entry) = groups(group).find(|entry| entry.name == name.as_bytes()) {
        return Ok(entry.gid);
    }
    parse_id(name)?.ok_or_else(|| UserError::NoGroup { name: name.to_owned() })
}

struct UserEntry<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

struct GroupEntry<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

/// The well-formed lines of a passwd file. Others are skipped, as the C library does.
fn users(passwd: &[u8]) -> impl Iterator<Item = UserEntry<'_>> {
    lines(passwd).filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b':');
        let name = fields.next()?;
        fields.next()?;
        let uid = number(fields.next()?)?;
        let gid = number(fields.next()?)?;
        fields.next();
        Some(UserEntry { name, uid, gid, home: fields.next().unwrap_or_default() })
    })
}

fn groups(group: &[u8]) -> impl Iterator<Item = GroupEntry<'_>> {
    lines(group).filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b':');
        let name = fields.next()?;
        fields.next()?;
        let gid = number(fields.next()?)?;
        Some(GroupEntry { name, gid, members: fields.next().unwrap_or_default() })
    })
}

fn lines(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    content
        .split(|&byte| byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty() && line[0] != b'#')
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
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
        user("app", 1000, 1001, &[10, 29]);
        user("1000", 1000, 1001, &[10, 29]);
        user("app:audio", 1000, 29, &[]);
        user("app:7", 1000, 7, &[]);
        user("4000", 4000, 0, &[]);
        user("4000:5000", 4000, 5000, &[]);
        user("", 0, 0, &[10]);
        user("root", 0, 0, &[10]);
        user("app:", 1000, 1001, &[10, 29]);
        // Names made of digits win over numbers.
        user("1234", 77, 78, &[]);
        user("app:55", 1000, 66, &[]);
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
        assert!(matches!(resolve_user("app", b"", b""), Err(UserError::NoUser { .. })));
    }

    #[test]
    fn chown_without_a_group_takes_the_same_number() {
        assert_eq!(resolve_chown("app", PASSWD, GROUP), Ok((1000, 1000)));
        assert_eq!(resolve_chown("app:app", PASSWD, GROUP), Ok((1000, 1001)));
        assert_eq!(resolve_chown("55:66", b"", b""), Ok((55, 66)));
        assert_eq!(resolve_chown("55", b"", b""), Ok((55, 55)));
        assert_eq!(resolve_chown("1234:55", PASSWD, GROUP), Ok((1234, 55)));
        assert!(matches!(resolve_chown("x", PASSWD, GROUP), Err(UserError::NoUser { .. })));
        assert!(matches!(resolve_chown(":5", PASSWD, GROUP), Err(UserError::Empty { .. })));
    }
}
