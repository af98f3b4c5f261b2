//! Scenes in which the engine must hold its own: ratios with bands around what was measured, since
//! constants differ from fleet to fleet and ratios hardly do.

#[path = "scenarios/clients.rs"]
mod clients;
#[path = "scenarios/fleets.rs"]
mod fleets;
#[path = "scenarios/replicas.rs"]
mod replicas;
#[path = "scenarios/scene.rs"]
mod scene;
#[path = "scenarios/servers.rs"]
mod servers;
