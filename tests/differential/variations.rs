//! Small changes of a case after which most of its steps should not have to run again.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::cases::Case;

/// What is different from the case as it stands in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variation {
    /// Nothing.
    None,
    /// A comment in the Dockerfile.
    Comment,
    /// An argument that nothing mentions.
    UnusedArg,
    /// Another time of a file in the build context.
    Touched,
    /// Another mode.
    Mode,
    /// Another content.
    Content,
    /// Another name.
    Renamed,
    /// A base image with another file in it.
    ChangedBase,
}

/// All but the first, which comes before them.
pub(crate) const CHANGES: &[Variation] = &[
    Variation::Comment,
    Variation::UnusedArg,
    Variation::Touched,
    Variation::Mode,
    Variation::Content,
    Variation::Renamed,
    Variation::ChangedBase,
];

impl Variation {
    /// How it is called in differences and in the list of deviations.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "as it is",
            Self::Comment => "comment",
            Self::UnusedArg => "unused ARG",
            Self::Touched => "touched",
            Self::Mode => "mode",
            Self::Content => "content",
            Self::Renamed => "renamed",
            Self::ChangedBase => "changed base",
        }
    }

    /// Whether the case has what is to be changed.
    pub(crate) fn applies_to(self, case: &Case, has_base: bool) -> bool {
        match self {
            Self::None => true,
            Self::Comment | Self::UnusedArg => end_of_from(&case.dockerfile).is_some(),
            Self::Touched | Self::Mode | Self::Content | Self::Renamed => source(case).is_some(),
            Self::ChangedBase => has_base,
        }
    }

    /// A line that it adds to the Dockerfile.
    fn line(self) -> Option<&'static str> {
        match self {
            Self::Comment => Some("# A comment.\n"),
            Self::UnusedArg => Some("ARG UNUSED=1\n"),
            _ => None,
        }
    }

    /// Changes the case's build context.
    pub(crate) fn change_files(self, case: &Case, directory: &Path) {
        let run = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
        if let Some(line) = self.line() {
            let dockerfile = directory.join(case.dockerfile_path());
            let mut text = std::fs::read_to_string(&dockerfile).unwrap();
            text.insert_str(end_of_from(&text).expect("it was asked whether this applies"), line);
            std::fs::write(&dockerfile, text).unwrap();
            // Unless its size or time is another, BuildKit's client does not send it again.
            let date = format!("@16000001{:02}", self as u32);
            run(Command::new("touch").arg("-d").arg(date).arg(dockerfile));
        }
        let Some(path) = source(case).map(|path| directory.join(path)) else { return };
        match self {
            Self::Touched => run(Command::new("touch").args(["-d", "@1600000000"]).arg(&path)),
            Self::Mode => {
                let mode = std::fs::metadata(&path).unwrap().permissions().mode() ^ 0o011;
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            }
            Self::Content => {
                let time = std::fs::metadata(&path).unwrap().modified().unwrap();
                let mut content = std::fs::read(&path).unwrap();
                content.extend_from_slice(b"# more\n");
                std::fs::write(&path, content).unwrap();
                std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
            }
            Self::Renamed => {
                let mut name = path.clone().into_os_string();
                name.push("-renamed");
                std::fs::rename(&path, name).unwrap();
            }
            Self::None | Self::Comment | Self::UnusedArg | Self::ChangedBase => {}
        }
    }
}

/// The file that is changed: the case's first.
fn source(case: &Case) -> Option<&str> {
    case.files.iter().find(|given| given.is_source()).map(|given| given.path.as_str())
}

/// Where the first FROM instruction of a Dockerfile ends.
fn end_of_from(text: &str) -> Option<usize> {
    let mut offset = 0;
    let mut inside = false;
    for line in text.split_inclusive('\n') {
        offset += line.len();
        inside |= line
            .trim_start_matches('\u{feff}')
            .get(..5)
            .is_some_and(|start| start.eq_ignore_ascii_case("from "));
        if inside && !line.trim_end().ends_with(['\\', '`']) {
            return Some(offset);
        }
    }
    None
}
