//! sheep
