//! `SOURCE_DATE_EPOCH` as the default of a global argument (`dockerfile2llb/convert.go`).

use std::borrow::Cow;

use super::env::{argument, platform_arguments};
use crate::build::options::BuildRequest;
use crate::dockerfile::expand::Lexer;
use crate::dockerfile::{Dockerfile, DockerfileError};
use crate::layer::Timestamp;
use crate::platform::Platform;

/// The argument's name.
const NAME: &str = "SOURCE_DATE_EPOCH";

/// The request with the epoch that the Dockerfile has, if it has one and the command line none.
pub(crate) fn with_epoch<'r>(
    request: Cow<'r, BuildRequest>,
    dockerfile: &Dockerfile,
) -> Result<Cow<'r, BuildRequest>, DockerfileError> {
    let is_declared = dockerfile.meta_args.iter().any(|declared| declared.node.name == NAME);
    if !is_declared || argument(&request.build_args, NAME).is_some() {
        return Ok(request);
    }
    let host = Platform::host();
    let platform = request.platforms.first().unwrap_or(&host);
    let lexer = Lexer::new(dockerfile.directives.escape);
    let mut globals = platform_arguments(&host, platform, "", &request.build_args);
    let mut epoch = None;
    for declared in &dockerfile.meta_args {
        let at = |message: String| DockerfileError::at(&dockerfile.source, declared.lines, message);
        let value = match (argument(&request.build_args, &declared.node.name), &declared.node.default) {
            (Some(given), _) => given.to_owned(),
            (None, Some(default)) => {
                lexer.word(default, &globals).map_err(|error| at(error.to_string()))?.text
            }
            (None, None) => continue,
        };
        if declared.node.name == NAME && !value.is_empty() {
            let seconds: u32 = value.parse().map_err(|_| {
                at(format!("{NAME} is `{value}`, which is not a number of seconds since 1970")).word(NAME)
            })?;
            epoch = Some(Timestamp { seconds: seconds.into(), nanos: 0 });
        }
        globals.set(declared.node.name.clone(), value);
    }
    if epoch.is_none() {
        return Ok(request);
    }
    Ok(Cow::Owned(BuildRequest { source_date_epoch: epoch, ..request.into_owned() }))
}
