//! What changes while the gateway runs: policies and the configuration.
//!
//! A new one is built and proved beside the old one, and then swapped in as a whole. Any failure leaves the old one in
//! force, and is said once for the same content.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::background;
use crate::config::Config;
use crate::gateway::{Gateway, Policies, load};
use crate::policy::{Engine, Policy, Watcher};

/// The configuration that the gateway was begun with.
#[derive(Debug)]
pub struct Begun<'a> {
    /// Where it was read.
    pub file: &'a Path,
    /// What was read.
    pub text: String,
}

/// Watches the configuration and every policy's module, and puts what has changed into force. `told` says that the operator
/// wants everything read again. Never ends.
///
/// # Cancel safety
/// Dropping it leaves in force what is in force.
pub async fn run(gateway: &mut Gateway, begun: Begun<'_>, engine: &Engine, mut told: mpsc::UnboundedReceiver<()>) {
    let file = std::path::absolute(begun.file).unwrap_or_else(|_| begun.file.to_owned());
    let mut configuration = Configuration::new(file, begun.text);
    let mut watcher = Watcher::new(configuration.watched(gateway));
    // What changed since it was read, and before it was watched, would be no event.
    let mut at_first = Some(configuration.watched(gateway));
    loop {
        let changed = match at_first.take() {
            Some(paths) => Some(paths),
            None => tokio::select! {
                Some(()) = told.recv() => None,
                paths = watcher.changed() => Some(paths),
            },
        };
        let is_touched = changed.as_deref().is_none_or(|paths| configuration.is_touched_by(paths));
        if is_touched {
            // The policies are read with it, also those that have not settled yet. One that was gone, is back and loaded with
            // the configuration, and goes again at once would look as if nothing had happened.
            watcher.report_all();
            let wish = if changed.is_none() { Wish::Operators } else { Wish::Nobodys };
            configuration.reload(gateway, engine, wish).await;
        }
        // Also when the configuration cannot be used: the policies that are in force are another matter.
        policies(gateway, changed.as_deref().filter(|_| !is_touched)).await;
        watcher.watch(configuration.watched(gateway));
    }
}

/// Reads those policies again whose modules are among `paths`, or all of them; beside the workers.
async fn policies(gateway: &Gateway, paths: Option<&[PathBuf]>) {
    let is_changed = |policy: &&Arc<Policy>| paths.is_none_or(|paths| paths.contains(&policy.options().module));
    let changed: Vec<Arc<Policy>> = gateway.policies().values().filter(is_changed).map(Arc::clone).collect();
    for policy in changed {
        // If there is no answer, the old generation stays; the others are another matter.
        background::run("reload", move || drop(policy.reload())).await;
    }
}

/// Who wants a configuration to be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// It was seen to have changed: what is wrong is said once.
    Nobodys,
    /// The operator asked and gets an answer each time.
    Operators,
}

/// The configuration file, and what became of it when it was last tried.
struct Configuration {
    file: PathBuf,
    seen: Option<Vec<u8>>,
    /// Where it failed: the modules that it names, because it may be one of them that has to be mended.
    wanted: Vec<PathBuf>,
    said: Option<String>,
}

impl Configuration {
    fn new(file: PathBuf, text: String) -> Self {
        Self { seen: Some(text.into_bytes()), file, wanted: Vec::new(), said: None }
    }

    fn watched(&self, gateway: &Gateway) -> Vec<PathBuf> {
        let in_force = gateway.policies().values().map(|policy| policy.options().module.clone());
        std::iter::once(self.file.clone()).chain(self.wanted.iter().cloned()).chain(in_force).collect()
    }

    /// Whether there is anything new in it, or in what it failed for.
    fn is_touched_by(&self, paths: &[PathBuf]) -> bool {
        paths.iter().any(|path| self.wanted.contains(path))
            || paths.contains(&self.file) && std::fs::read(&self.file).ok() != self.seen
    }

    async fn reload(&mut self, gateway: &mut Gateway, engine: &Engine, wish: Wish) {
        let view = Arc::clone(gateway.view());
        let _turn = view.turn.lock().await;
        self.seen = std::fs::read(&self.file).ok();
        let (file, engine, previous): (_, _, Policies) =
            (self.file.clone(), engine.clone(), gateway.policies().clone());
        let build = background::run("reload", move || match Config::read(&file) {
            Ok(config) => {
                let modules = config.policies.iter().map(|policy| policy.options.module.clone()).collect();
                (modules, load(config, &engine, &previous))
            }
            Err(faults) => (Vec::new(), Err(faults)),
        });
        let Some((modules, built)) = build.await else { return };
        let faults = match built {
            Ok(loaded) => match gateway.replace(loaded) {
                Ok(()) => {
                    gateway.view().configuration.count(true);
                    (self.wanted, self.said) = (Vec::new(), None);
                    tracing::info!("configuration reloaded");
                    return;
                }
                Err(error) => vec![crate::log::chain(&error)],
            },
            Err(faults) => faults.0.iter().map(ToString::to_string).collect(),
        };
        gateway.view().configuration.count(false);
        self.wanted = modules;
        let said = Some(faults.join("\n"));
        if wish == Wish::Operators || self.said != said {
            for fault in &faults {
                tracing::warn!(%fault, "configuration not reloaded: the old one stays in force");
            }
            self.said = said;
        }
    }
}
