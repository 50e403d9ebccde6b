//! Input that is broken, lies, or never ends, and a machine that does not do its part. Each time: a clear error or a
//! step that runs again, in bounded time; nothing left behind; and the next build gives the right image.

mod bombs;
mod files;
mod machine;
mod registries;
mod stores;
