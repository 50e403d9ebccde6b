//! The build engine: plan → solve → export.
