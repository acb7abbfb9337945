//! Worlds of whole nodes, groups of raft members, ensembles, and models of the protocol. They are one program, so that all of a
//! machine's cores work on them: most take long, and some are alone in their file.

mod cut_off;
mod ensembles;
mod groups;
mod model;
mod moves;
mod nodes;
mod permits;
mod replacing;
mod worlds;
