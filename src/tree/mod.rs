//! Trees: the merged view of an ordered list of layers, held as TOCs.
