//! The log on stderr.

use std::io::Write;

use log::LevelFilter;

/// Sends log messages to stderr, as lines that say whose they are. That stderr is gone must not end the agent.
pub fn log_to_stderr(default: &str) {
    let wanted = std::env::var("LODGER_LOG").ok().filter(|text| !text.is_empty());
    let level = wanted.as_deref().unwrap_or(default).parse::<LevelFilter>();
    env_logger::Builder::new()
        // What is logged the log crate alone decides, so that it can be changed later.
        .filter_level(LevelFilter::Trace)
        // It tells of each frame, in terms of its own.
        .filter_module("tungstenite", LevelFilter::Warn)
        .format(|out, record| {
            let level = record.level().as_str().to_ascii_lowercase();
            writeln!(out, "lodger {level}: {}", record.args())
        })
        .init();
    log::set_max_level(*level.as_ref().unwrap_or(&LevelFilter::Warn));
    if let (Err(_), Some(text)) = (level, wanted) {
        log::warn!("LODGER_LOG: {text} is no level");
    }
}
