//! Nothing but a place for `examples/models`, the models of `phalanx`'s locks and their kin.
//!
//! They are an example because of the unit tests in the sources that they include: those need
//! `phalanx` around them, and an example is never compiled for tests.
