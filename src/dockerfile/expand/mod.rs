//! Variables in words: `$x`, `${x:-default}`, `${x#pattern}` …, and quotes and escapes around them.
//!
//! One instruction sees the environment as it was when the instruction began. Which parts of which instruction are
//! expanded is the planner's knowledge; how, is here.

mod env;
mod lexer;
mod pattern;

pub use env::{Env, NoEnv};
pub use lexer::{ExpandError, Expanded, Lexer};
