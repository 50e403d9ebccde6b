//! Running steps.

/// How a step reaches the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Network {
    /// The builder's default.
    #[default]
    Default,
    /// Only a loopback interface of its own.
    None,
    /// The host's network.
    Host,
}
