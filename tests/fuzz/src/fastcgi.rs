//! The pure part of FastCGI.

#[path = "../../../src/fastcgi/environment.rs"]
pub mod environment;
#[path = "../../../src/fastcgi/head.rs"]
pub mod head;
#[path = "../../../src/fastcgi/naive.rs"]
pub mod naive;
#[path = "../../../src/fastcgi/pairs.rs"]
pub mod pairs;
#[path = "../../../src/fastcgi/record.rs"]
pub mod record;
#[path = "../../../src/fastcgi/script.rs"]
pub mod script;
