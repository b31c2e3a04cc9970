//! What changes while the gateway runs: policies and the configuration.
//!
//! A new one is built and proved beside the old one, and then swapped in as a whole. Any failure leaves the old one in
//! force, and is said once for the same content.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::config::Config;
use crate::gateway::{Gateway, Policies, load};
use crate::policy::{Engine, Policy, Watcher};

/// Watches the configuration and every policy's module, and puts what has changed into force. `told` says that the operator
/// wants everything read again. Never ends.
///
/// # Cancel safety
/// Dropping it leaves in force what is in force.
pub async fn run(gateway: &mut Gateway, file: &Path, engine: &Engine, mut told: mpsc::UnboundedReceiver<()>) {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let mut configuration = Configuration { seen: std::fs::read(&file).ok(), file };
    let mut watcher = Watcher::new(watched(gateway, &configuration.file));
    loop {
        let changed = tokio::select! {
            Some(()) = told.recv() => None,
            paths = watcher.changed() => Some(paths),
        };
        match changed {
            Some(paths) if !paths.contains(&configuration.file) => policies(gateway, &paths).await,
            Some(_) if !configuration.has_changed() => {}
            _ => configuration.reload(gateway, engine).await,
        }
        watcher.watch(watched(gateway, &configuration.file));
    }
}

/// Those whose modules are among `paths`, beside the workers.
async fn policies(gateway: &Gateway, paths: &[PathBuf]) {
    let changed: Vec<Arc<Policy>> =
        gateway.policies().values().filter(|p| paths.contains(&p.options().module)).map(Arc::clone).collect();
    // An error is a panic while compiling: it was reported, and the old generation stays.
    drop(tokio::task::spawn_blocking(move || changed.iter().for_each(|policy| drop(policy.reload()))).await);
}

fn watched(gateway: &Gateway, file: &Path) -> Vec<PathBuf> {
    let modules = gateway.policies().values().map(|policy| policy.options().module.clone());
    std::iter::once(file.to_owned()).chain(modules).collect()
}

/// The configuration file, and its content when it was last tried.
struct Configuration {
    file: PathBuf,
    seen: Option<Vec<u8>>,
}

impl Configuration {
    fn has_changed(&self) -> bool {
        std::fs::read(&self.file).ok() != self.seen
    }

    async fn reload(&mut self, gateway: &mut Gateway, engine: &Engine) {
        self.seen = std::fs::read(&self.file).ok();
        let (file, engine, previous): (_, _, Policies) =
            (self.file.clone(), engine.clone(), gateway.policies().clone());
        let build = tokio::task::spawn_blocking(move || load(Config::read(&file)?, &engine, &previous));
        let Ok(built) = build.await else { return };
        match built {
            Ok(loaded) => match gateway.replace(loaded) {
                Ok(()) => tracing::info!("configuration reloaded"),
                Err(error) => {
                    let error = crate::log::chain(&error);
                    tracing::warn!(error, "configuration not reloaded: the old one stays in force");
                }
            },
            Err(faults) => {
                for fault in &faults.0 {
                    tracing::warn!(fault = %fault, "configuration not reloaded: the old one stays in force");
                }
            }
        }
    }
}
