//! What runs as a simulated process: the shipped node, driven the way the `velum` command drives it.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    rc::{Rc, Weak},
};

use futures_util::future::{Either, select};
use tokio::sync::{mpsc, oneshot};
use velum_node::{
    array::recover::{CloudAt, Plan, Verify, recover},
    config::NodeConfig,
    env::Env,
    keyring::ProviderSecret,
    node::{self, Node},
};
use velum_protocol::{
    admin::{Problem, Request, Response},
    format::metadata::CloudName,
    invitation::Invitation,
};

use super::host::Condition;

/// The operator who asks: whoever makes a volume may write it, and guests are nobody in particular.
const OPERATOR: &str = "anonymous";

/// What a process does before it serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Task {
    /// Makes a cluster if there is none, and serves it: `velum up`.
    #[default]
    Up,
    /// Recovers a cluster from its clouds, without those named, and serves it: `velum recover`, then `velum up`.
    Recover {
        /// Clouds given up.
        accept_missing: Vec<String>,
    },
    /// Makes a node that joins with a token if there is none, and serves it: `velum cluster join`, then `velum node`.
    Join {
        /// What `velum cluster token` gave.
        token: String,
    },
}

/// What the world asks of a running process.
pub enum Command {
    /// An operator's request.
    Admin(Request, oneshot::Sender<Result<Response, Problem>>),
    /// Stop cleanly.
    Stop(oneshot::Sender<()>),
}

/// The main of a simulated process.
pub async fn run(
    env: Env,
    config: NodeConfig,
    secret: [u8; 32],
    task: Task,
    commands: mpsc::Receiver<Command>,
    (condition, seen): (Rc<RefCell<Condition>>, Rc<RefCell<Weak<Node>>>),
) {
    match start(env, config, secret, task).await {
        Ok(node) => {
            let node = Rc::new(node);
            seen.replace(Rc::downgrade(&node));
            condition.replace(Condition::Up);
            let why = serve(node, commands).await;
            condition.replace(Condition::Failed(why));
        }
        Err(why) => drop(condition.replace(Condition::Failed(why))),
    }
}

async fn start(env: Env, config: NodeConfig, secret: [u8; 32], task: Task) -> Result<Node, String> {
    let secret = || ProviderSecret::from_keyfile(0o600, secret.to_vec()).expect("the world's root key is random");
    if !node::is_created(&env, &config).await.map_err(|error| error.to_string())? {
        match task {
            Task::Up => drop(node::create(&env, &config, &secret()).await.map_err(|error| error.to_string())?),
            Task::Recover { accept_missing } => bring_back(&env, &config, secret(), accept_missing).await?,
            Task::Join { token } => {
                let invitation = Invitation::parse(&token).ok_or("the token is none")?;
                node::join(&env, &config, &secret(), invitation).await.map_err(|error| error.to_string())?;
            }
        }
    }
    Node::start(env, config, &secret()).await.map_err(|error| error.to_string())
}

async fn bring_back(
    env: &Env,
    config: &NodeConfig,
    secret: ProviderSecret,
    accept_missing: Vec<String>,
) -> Result<(), String> {
    let cloud = |cloud: &velum_node::config::CloudConfig| CloudAt {
        name: CloudName(cloud.name.clone()),
        url: cloud.url.clone(),
        options: BTreeMap::new(),
    };
    let plan = Plan {
        clouds: config.clouds.iter().map(cloud).collect(),
        secret,
        accept_missing: accept_missing.into_iter().map(CloudName).collect::<BTreeSet<_>>(),
        verify: Verify::Present,
    };
    let recovered = recover(env, &plan, &|_| {}).await.map_err(|error| error.to_string())?;
    let (identity, keyring, state) = (&recovered.identity, &recovered.keyring, &recovered.state);
    node::adopt(env, config, identity, keyring, state).await.map_err(|error| error.to_string())
}

/// Answers until the node is stopped or fails; says how it ended.
async fn serve(node: Rc<Node>, mut commands: mpsc::Receiver<Command>) -> String {
    let stopped = loop {
        let (failed, ended, next) = (pin!(node.failed()), pin!(node.ended()), pin!(commands.recv()));
        match select(select(failed, ended), next).await {
            Either::Left((Either::Left((why, _)), _)) => return why,
            Either::Left((Either::Right((why, _)), _)) => return why.to_string(),
            Either::Right((None, _)) => return "the world let go of it".to_owned(),
            Either::Right((Some(Command::Stop(stopped)), _)) => break stopped,
            Either::Right((Some(Command::Admin(request, answer)), _)) => {
                let node = Rc::clone(&node);
                tokio::task::spawn_local(async move { drop(answer.send(node.admin(OPERATOR, request).await)) });
            }
        }
    };
    // An operator's request under way holds the node; then it is killed instead.
    if let Ok(node) = Rc::try_unwrap(node) {
        node.stop().await;
        let _ = stopped.send(());
    }
    "stopped".to_owned()
}
