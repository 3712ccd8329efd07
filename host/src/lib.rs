//! Vassal.
