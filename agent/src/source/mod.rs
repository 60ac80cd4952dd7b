//! Where Kubernetes objects come from: a stream of [`Event`]s, the same whatever the origin is. And the one setting that
//! follows a file ([`masq_file`]).

pub mod dir;
pub mod kubernetes;
pub mod masq_file;
mod notices;
pub mod parse;
pub mod status;

pub use crate::core::objects::{Event, Key, Kind, Object};
pub use status::Status;
