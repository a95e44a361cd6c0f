//! Chains as no sane driver makes them.
