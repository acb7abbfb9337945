//! The simulated environment keeps what the real one promises the node.

use std::{collections::BTreeMap, path::Path, rc::Rc};

use velum_node::env::{Env, Local, Stream, network::Address};
use velum_sim::{
    conformance::{clock, clouds, compute, disk, entropy, network},
    env::{self, Machine, Surroundings, cloud::SimCloud, disk::Loss, network::Wires},
    rng::Rng,
    runtime::{Life, simulate},
};

const CLOUD: &str = "memory:///a";

/// Runs a suite on a machine without faults, with a clock of its own.
fn on_machine(suite: impl FnOnce(Env, Rc<Wires>, Rc<str>) -> Local<()> + Send + 'static) {
    let run = simulate(
        7,
        || None,
        |sim| {
            Box::pin(async move {
                let wires = Wires::new(Rc::clone(&sim), Rng::new(7, "network"));
                let clouds = BTreeMap::from([(CLOUD.to_owned(), SimCloud::new(Rc::clone(&sim), "a"))]);
                let around = Surroundings { sim, wires: Rc::clone(&wires), clouds: Rc::new(clouds) };
                let mut machine = Machine::new("node-1");
                (machine.clock_offset_ms, machine.clock_rate_ppm) = (77, -20_000);
                let env = env::of(&around, &machine, &Rc::<Life>::default(), 1);
                suite(env, wires, Rc::clone(&machine.name)).await;
            })
        },
    );
    assert!(run.failures.is_empty() && run.result.is_some(), "{:#?}", run.failures);
}

#[test]
fn clock_conforms() {
    on_machine(|env, _, _| Box::pin(async move { clock::run(&env).await }));
}

#[test]
fn entropy_conforms() {
    on_machine(|env, _, _| Box::pin(async move { entropy::run(&env) }));
}

#[test]
fn compute_conforms() {
    on_machine(|env, _, _| Box::pin(async move { compute::run(&env).await }));
}

#[test]
fn disk_conforms() {
    on_machine(|env, _, _| {
        Box::pin(async move {
            let dir = Path::new("/conformance");
            env.disk.create_dir_all(dir).await.expect("a directory can be made");
            disk::run(&env, dir).await;
        })
    });
}

fn streams_conform(address: Address) {
    on_machine(move |env, wires, node| {
        Box::pin(async move {
            let connect = move |address: Address| -> Local<std::io::Result<Box<dyn Stream>>> {
                let connected = wires.connect(&node, &address);
                Box::pin(async move { connected.map(|end| -> Box<dyn Stream> { Box::new(end) }) })
            };
            network::run(&env, &address, &connect).await;
        })
    });
}

#[test]
fn tcp_conforms() {
    streams_conform(Address::Tcp("127.0.0.1:0".to_owned()));
}

#[test]
fn unix_sockets_conform() {
    streams_conform(Address::Unix("/run/velum.sock".into()));
}

#[test]
fn peers_conform() {
    on_machine(|env, wires, node| {
        Box::pin(async move {
            let connect = move |address: Address| -> Local<std::io::Result<Box<dyn Stream>>> {
                let connected = wires.connect(&node, &address);
                Box::pin(async move { connected.map(|end| -> Box<dyn Stream> { Box::new(end) }) })
            };
            network::run_peers(&env, &Address::Tcp("127.0.0.1:0".to_owned()), &connect).await;
        })
    });
}

#[test]
fn clouds_conform() {
    on_machine(|env, _, _| {
        Box::pin(async move {
            clouds::run(&env, CLOUD, &BTreeMap::new(), clouds::Abilities { decides_races: true }).await;
        })
    });
}

#[test]
fn a_loss_of_power_begins_another_boot_and_a_kill_does_not() {
    let run = simulate(
        7,
        || None,
        |sim| {
            Box::pin(async move {
                let wires = Wires::new(Rc::clone(&sim), Rng::new(7, "network"));
                let around = Surroundings { sim, wires, clouds: Rc::default() };
                let (machine, other) = (Machine::new("node-1"), Machine::new("node-2"));
                let boot = async |machine: &Machine, life| {
                    let env = env::of(&around, machine, &Rc::<Life>::default(), life);
                    env.disk.boot().await.expect("the machine can tell its boot")
                };
                let first = boot(&machine, 1).await;
                machine.medium.image.borrow_mut().drop_nameless();
                assert_eq!(boot(&machine, 2).await, first);
                machine.medium.image.borrow_mut().crash(Loss::KeepAll, &Rng::new(7, "loss"));
                assert_ne!(boot(&machine, 3).await, first);
                assert_ne!(boot(&other, 1).await, first);
            })
        },
    );
    assert!(run.failures.is_empty() && run.result.is_some(), "{:#?}", run.failures);
}
