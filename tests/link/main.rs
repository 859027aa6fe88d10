//! The link from end to end: programs, files and bare channels over one serial line in all weathers.

#[path = "../support/client.rs"]
mod client;
#[path = "../support/line.rs"]
mod line;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/weather.rs"]
mod weather;

mod channels;
mod console;
mod nobody;
mod noise;
mod programs;
mod restarts;
mod rig;
