//! Answers made here.
