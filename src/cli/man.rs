//! `crossdock man`: manual pages, made from the definitions of the command line.

use std::io;
use std::path::Path;

use clap::{Command, CommandFactory as _};

use super::args::Cli;
use super::error::CliError;

/// Writes one page for each command into `directory`: `crossdock.1`, `crossdock-build.1`, `crossdock-cache-ls.1` ….
pub(super) fn write(directory: &Path) -> Result<(), CliError> {
    fs_err::create_dir_all(directory).map_err(CliError::failure)?;
    let mut root = Cli::command();
    root.build();
    pages(&root, "crossdock", directory)
}

fn pages(command: &Command, name: &str, directory: &Path) -> Result<(), CliError> {
    fs_err::write(directory.join(format!("{name}.1")), page(command, name).map_err(CliError::system)?)
        .map_err(CliError::failure)?;
    for child in command.get_subcommands().filter(|child| !child.is_hide_set()) {
        pages(child, &format!("{name}-{}", child.get_name()), directory)?;
    }
    Ok(())
}

/// One page. Examples get a section of their own, which the library would call "EXTRA".
fn page(command: &Command, name: &str) -> io::Result<Vec<u8>> {
    let page = clap_mangen::Man::new(command.clone())
        .title(name)
        .section("1")
        .manual("Crossdock")
        .source(concat!("crossdock ", env!("CARGO_PKG_VERSION")));
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    if command.get_subcommands().any(|child| !child.is_hide_set()) {
        page.render_subcommands_section(&mut text)?;
    }
    if let Some(examples) = command.get_after_help() {
        text.extend_from_slice(b".SH EXAMPLES\n.nf\n");
        for line in examples.to_string().lines().skip_while(|line| *line == "Examples:") {
            // `\&` is nothing, and keeps a line that begins with a dot from being a request.
            text.extend_from_slice(b"\\&");
            text.extend_from_slice(line.replace('\\', "\\(rs").replace('-', "\\-").as_bytes());
            text.push(b'\n');
        }
        text.extend_from_slice(b".fi\n");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_its_flags_and_examples() {
        let directory = tempfile::tempdir().unwrap();
        write(&directory.path().join("new")).unwrap();
        let read = |name: &str| fs_err::read_to_string(directory.path().join("new").join(name)).unwrap();
        let build = read("crossdock-build.1");
        for part in [
            ".SH OPTIONS",
            "no\\-cache\\-filter",
            ".SH EXAMPLES\n.nf\n\\&",
            "\n\\&    crossdock build \\-\\-",
        ] {
            assert!(build.contains(part), "{part} is not in {build}");
        }
        assert!(read("crossdock.1").contains("crossdock\\-build(1)"));
        assert!(read("crossdock-cache-prune.1").contains("max\\-age"));
        assert!(!directory.path().join("new/crossdock-__docs.1").exists());
    }
}
