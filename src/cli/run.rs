//! `baton run`: the gateway, from its configuration to its drain.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::config::{self, Config};
use crate::gateway::{Gateway, Held, Policies, load};
use crate::policy::Engine;
use crate::reload::Begun;
use crate::signal::{Signal, Signals};

/// Runs the gateway.
#[derive(Debug, clap::Args)]
pub struct Run {
    /// The configuration [default: baton.toml here, else /etc/baton/baton.toml]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Show each decision of this policy on standard output as it is made, and what it logs, at every level
    #[arg(long, value_name = "POLICY")]
    watch_log: Option<String>,
}

impl Run {
    /// The policy that is watched.
    pub fn watched(&self) -> Option<&str> {
        self.watch_log.as_deref()
    }
}

/// Runs the command.
///
/// # Errors
/// What the system refuses.
pub fn run(args: Run) -> anyhow::Result<ExitCode> {
    let file = super::configuration(args.config);
    if let Some(watched) = &args.watch_log
        && let Ok(config) = Config::read(&file)
    {
        let names: Vec<_> = config.policies.iter().map(|policy| &*policy.options.name).collect();
        if !names.contains(&watched.as_str()) {
            super::say(&format!("baton: --watch-log {watched}: the configuration has {}", names.join(", ")));
            return Ok(ExitCode::from(2));
        }
    }
    serve(&file, |_| ())
}

/// Serves what `file` says until told to end; `ready` is called when every address accepts.
///
/// # Errors
/// What the system refuses.
pub fn serve(file: &Path, ready: impl FnOnce(&Gateway)) -> anyhow::Result<ExitCode> {
    let (text, config) =
        match config::text(file).and_then(|text| Config::parse(file, &text).map(|config| (text, config))) {
            Ok(read) => read,
            Err(faults) => return Ok(super::faults(&faults)),
        };
    crate::background::compilers();
    // Modules are read, proved and kept as who reads them again at every reload. Compiled code that another user can change
    // is not run as root, and what root keeps no other user can read. Only addresses need root.
    let held = config.user.is_some().then(|| Held::take(&config)).transpose()?;
    let engine = Engine::new(config.workers)?;
    let loaded = match load(config, &engine, &Policies::new()) {
        Ok(loaded) => loaded,
        Err(faults) => return Ok(super::faults(&faults)),
    };
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // What is being compiled when it ends runs on threads that nobody waits for.
    control.block_on(async {
        let mut signals = Signals::new()?;
        let mut gateway = Gateway::start(loaded, held)?;
        for listener in gateway.listening() {
            super::say(&format!("listening on {listener}"));
        }
        if let Some(admin) = gateway.admin() {
            super::say(&format!("admin on {admin}"));
        }
        // Nobody may be listening: that is systemd's business.
        drop(sd_notify::notify(&[sd_notify::NotifyState::Ready]));
        ready(&gateway);

        let (tell, told) = tokio::sync::mpsc::unbounded_channel();
        let access_log = gateway.access_log();
        let hear = async {
            loop {
                match signals.next().await {
                    Signal::Drain => return,
                    Signal::Reload => drop(tell.send(())),
                    Signal::Reopen => {
                        if let Some(log) = access_log() {
                            log.reopen();
                        }
                    }
                }
            }
        };
        tokio::select! {
            () = hear => {}
            () = crate::reload::run(&mut gateway, Begun { file, text }, &engine, told) => {}
        }
        drop(sd_notify::notify(&[sd_notify::NotifyState::Stopping]));
        let cut = async { while signals.next().await != Signal::Drain {} };
        gateway.drain(cut).await;
        anyhow::Ok(ExitCode::SUCCESS)
    })
}
