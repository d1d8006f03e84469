"""Python multiprocessing, rebuilt in Rust."""
