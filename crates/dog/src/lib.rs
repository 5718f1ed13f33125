//! dog
