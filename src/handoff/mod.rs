//! Handing a client over (being written).
