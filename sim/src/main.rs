//! `velum-sim`: runs worlds under seeds.

mod modelled;

use std::{
    io::Write,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use clap::{Args, Parser, Subcommand};
use velum_sim::{
    ensemble, group,
    minimise::minimise,
    plan::Options,
    planted::{self, Planted, World},
    report::{Goal, Summary, reproduce},
    runtime::Run,
    trace::Printer,
    world::Recipe,
};

/// Of so many worlds of a soak one is run twice.
const TWICE_EVERY: u64 = 50;

/// Runs whole Velum nodes with their clouds, disks and guests under a seed, and checks every promise.
#[derive(Parser)]
#[command(name = "velum-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the world of one seed.
    Run {
        /// The seed.
        #[arg(long)]
        seed: u64,
        /// Print every event.
        #[arg(long)]
        trace: bool,
        /// Plant a bug.
        #[arg(long)]
        planted: Option<Planted>,
        #[command(flatten)]
        nodes: Nodes,
    },
    /// Run fresh seeds for some time.
    Soak(Soak),
    /// Run the world of one seed twice and compare the traces.
    Twice {
        /// The seed.
        #[arg(long)]
        seed: u64,
        #[command(flatten)]
        nodes: Nodes,
    },
    /// Make the failing world of a seed smaller: fewer troubles, less time.
    Minimise {
        /// The seed.
        #[arg(long)]
        seed: u64,
        /// Wall time to spend at most.
        #[arg(long, default_value_t = 5)]
        minutes: u64,
        #[command(flatten)]
        nodes: Nodes,
    },
    /// Run groups of raft members, one seed after another.
    Groups {
        /// The first seed.
        #[arg(long, default_value_t = 1)]
        seed_from: u64,
        /// How many.
        #[arg(long, default_value_t = 200)]
        seeds: u64,
        /// Print every event.
        #[arg(long)]
        trace: bool,
        /// Plant a bug.
        #[arg(long)]
        planted: Option<Planted>,
    },
    /// Run ensembles of the journal's machines, many worlds a second.
    Ensembles(Ensembles),
    /// Explore all that can happen within small bounds.
    Model(modelled::Model),
    /// Find every planted bug.
    Planted {
        /// Wall time to spend on one bug at most.
        #[arg(long, default_value_t = 2)]
        minutes: u64,
        /// Wall time to spend on all of them at most: what is not found by then counts as not found.
        #[arg(long, default_value_t = 60)]
        minutes_total: u64,
        /// Bugs looked for at once.
        #[arg(long, default_value_t = 2)]
        jobs: usize,
        /// Only this one.
        #[arg(long)]
        bug: Option<Planted>,
    },
}

/// How many nodes a world has.
#[derive(Args, Clone, Copy)]
struct Nodes {
    /// Nodes of each cluster; drawn from the seed when not given.
    #[arg(long, value_parser = node_count)]
    nodes: Option<usize>,
}

fn node_count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|nodes| [1, 3, 5].contains(nodes)).ok_or_else(|| "worlds have 1, 3 or 5 nodes".to_owned())
}

impl Nodes {
    fn recipe(self, seed: u64) -> Recipe {
        Recipe { options: Some(Options::of(seed, self.nodes)), ..Recipe::of(seed) }
    }
}

#[derive(Args)]
struct Ensembles {
    #[command(subcommand)]
    what: EnsemblesWhat,
}

#[derive(Subcommand)]
enum EnsemblesWhat {
    /// Run the world of one seed.
    Run {
        /// The seed.
        #[arg(long)]
        seed: u64,
        /// Print every event.
        #[arg(long)]
        trace: bool,
        /// Plant a bug.
        #[arg(long)]
        bug: Option<ensemble::Bug>,
    },
    /// Run fresh seeds for some time.
    Soak {
        /// Wall time to spend.
        #[arg(long, default_value_t = 1)]
        minutes: u64,
        /// The first seed; drawn when not given.
        #[arg(long)]
        seed_from: Option<u64>,
    },
    /// Run the world of one seed twice and compare the traces.
    Twice {
        /// The seed.
        #[arg(long)]
        seed: u64,
    },
    /// Find every bug planted in ensembles.
    Planted,
}

#[derive(Args)]
struct Soak {
    /// Wall time to spend.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// The first seed; drawn when not given.
    #[arg(long)]
    seed_from: Option<u64>,
    /// Worlds at once.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Stop at the first seed that fails.
    #[arg(long)]
    fail_fast: bool,
    #[command(flatten)]
    nodes: Nodes,
    /// Worlds that should be reached. With a goal, less than a fifth of it fails, and so does a kind of fault that no
    /// world had.
    #[arg(long)]
    goal_seeds: Option<u64>,
    /// Simulated hours that should be reached, judged likewise.
    #[arg(long)]
    goal_hours: Option<u64>,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run { seed, trace, planted, nodes } => run(seed, trace, planted, nodes),
        Command::Soak(soak) => soak.run(),
        Command::Twice { seed, nodes } => twice(seed, nodes),
        Command::Minimise { seed, minutes, nodes } => make_smaller(seed, minutes, nodes),
        Command::Groups { seed_from, seeds, trace, planted } => groups(seed_from, seeds, trace, planted),
        Command::Ensembles(Ensembles { what }) => what.run(),
        Command::Model(model) => exit(model.run()),
        Command::Planted { minutes, minutes_total, jobs, bug } => find_planted(minutes, minutes_total, jobs, bug),
    }
}

fn say(text: &str) {
    drop(writeln!(std::io::stdout().lock(), "{text}"));
}

#[expect(clippy::disallowed_methods, reason = "the command measures its own wall time; worlds have their own clock")]
fn now() -> Instant {
    Instant::now()
}

fn printer(trace: bool) -> Option<Printer> {
    trace.then(|| -> Printer { Box::new(say) })
}

fn world(seed: u64, nodes: Nodes) -> Run<()> {
    nodes.recipe(seed).run(|| None)
}

/// A seed's world, and for one seed in [`TWICE_EVERY`] once more: it must be the same.
fn judged(seed: u64, nodes: Nodes) -> Run<()> {
    let mut run = world(seed, nodes);
    if seed.is_multiple_of(TWICE_EVERY) {
        run.tally.insert("worlds run twice", 1);
        let again = world(seed, nodes);
        if (again.hash, again.events) != (run.hash, run.events) {
            let (first, second) = ((run.hash, run.events), (again.hash, again.events));
            run.failures.push(format!(
                "the seed made two worlds: {:016x} after {} events, {:016x} after {}",
                first.0, first.1, second.0, second.1
            ));
        }
    }
    run
}

fn exit(fine: bool) -> ExitCode {
    if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(seed: u64, trace: bool, planted: Option<Planted>, nodes: Nodes) -> ExitCode {
    say(&format!("seed {seed}"));
    let world = planted.map_or_else(|| World::Nodes(Box::new(nodes.recipe(seed))), |bug| planted::world(seed, bug));
    match &world {
        World::Nodes(recipe) => recipe.options.iter().for_each(|options| say(&format!("{options:#?}"))),
        World::Group(recipe) => say(&format!("{recipe:#?}")),
    }
    let began = now();
    let run = world.run(move || printer(trace));
    let mut summary = Summary { wall: began.elapsed_now(), ..Summary::default() };
    say(&format!("trace {:016x}", run.hash));
    for failure in &run.failures {
        say(failure);
    }
    let fine = run.failures.is_empty();
    summary.add(seed, run);
    say(&summary.to_string());
    exit(fine)
}

/// `elapsed`, asked of the one clock of this command.
trait ElapsedNow {
    fn elapsed_now(&self) -> Duration;
}

impl ElapsedNow for Instant {
    fn elapsed_now(&self) -> Duration {
        now().duration_since(*self)
    }
}

impl Soak {
    fn run(&self) -> ExitCode {
        let seed_from = self.seed_from.unwrap_or_else(fresh_seed);
        say(&format!("seeds from {seed_from}"));
        let (began, limit) = (now(), Duration::from_secs(self.minutes * 60));
        let next = AtomicU64::new(seed_from);
        let stop = AtomicBool::new(false);
        let total = Mutex::new(Summary::default());
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.max(1) {
                scope.spawn(|| {
                    while began.elapsed_now() < limit && !stop.load(Ordering::Relaxed) {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        let run = judged(seed, self.nodes);
                        if !run.failures.is_empty() {
                            say(&format!("seed {seed} failed: {}", run.failures.join("; ")));
                            say(&format!("  {}", reproduce(seed, self.nodes.nodes)));
                            stop.fetch_or(self.fail_fast, Ordering::Relaxed);
                        }
                        total.lock().expect("no job panics while it adds").add(seed, run);
                    }
                });
            }
        });
        let mut total = total.into_inner().expect("no job panics while it adds");
        total.wall = began.elapsed_now();
        say(&total.to_string());
        for (seed, _) in &total.failed {
            say(&format!("  {}", reproduce(*seed, self.nodes.nodes)));
        }
        exit(total.failed.is_empty() & self.has_come_far(&total))
    }

    /// Says how far the soak came beside its goals; false when that is not far enough to mean anything.
    fn has_come_far(&self, total: &Summary) -> bool {
        let goals = [
            self.goal_seeds.map(|worlds| Goal { what: "worlds", reached: total.seeds, wanted: worlds }),
            self.goal_hours.map(|hours| Goal {
                what: "simulated minutes",
                reached: total.simulated_ms / 60_000,
                wanted: hours * 60,
            }),
        ];
        let goals: Vec<Goal> = goals.into_iter().flatten().collect();
        for goal in &goals {
            say(&goal.to_string());
        }
        let missing = total.faults_missing(self.nodes.nodes != Some(1));
        let covered = goals.is_empty() || missing.is_empty();
        if !covered {
            say(&format!("NOT COVERED: no world had {}", missing.join(", ")));
        }
        covered && goals.iter().all(Goal::is_far_enough)
    }
}

/// A seed nobody chose, short enough to type.
#[expect(clippy::disallowed_methods, reason = "the one thing that is not to repeat is which seeds a soak begins with")]
fn fresh_seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::from(since.subsec_nanos()) ^ (since.as_secs() % 1_000_000_000)
}

fn twice(seed: u64, nodes: Nodes) -> ExitCode {
    say(&format!("seed {seed}"));
    let (first, second) = (world(seed, nodes), world(seed, nodes));
    say(&format!("first  {:016x} after {} events", first.hash, first.events));
    say(&format!("second {:016x} after {} events", second.hash, second.events));
    exit(first.hash == second.hash && first.events == second.events)
}

fn make_smaller(seed: u64, minutes: u64, nodes: Nodes) -> ExitCode {
    say(&format!("seed {seed}"));
    let began = now();
    let smallest = minimise(&nodes.recipe(seed), &|| began.elapsed_now(), Duration::from_secs(minutes * 60));
    let Some(smallest) = smallest else {
        say("it does not fail");
        return ExitCode::SUCCESS;
    };
    say(&format!("{:#?}", smallest.recipe));
    say(&format!("after {} worlds: {}", smallest.tried, smallest.failure));
    ExitCode::FAILURE
}

fn groups(seed_from: u64, seeds: u64, trace: bool, planted: Option<Planted>) -> ExitCode {
    let mut total = Summary::default();
    let began = now();
    for seed in seed_from..seed_from.saturating_add(seeds) {
        let recipe = group::Recipe { planted, ..group::Recipe::of(seed) };
        let run = recipe.run(move || printer(trace));
        for failure in &run.failures {
            say(&format!("seed {seed}: {failure}"));
        }
        total.add(seed, run);
    }
    total.wall = began.elapsed_now();
    say(&total.to_string());
    exit(total.failed.is_empty())
}

impl EnsemblesWhat {
    fn run(&self) -> ExitCode {
        match *self {
            Self::Run { seed, trace, bug } => {
                let mut total = Summary::default();
                let recipe = bug.map_or(ensemble::Recipe::of(seed), |bug| ensemble::Recipe::planted(seed, bug));
                let run = recipe.run(printer(trace));
                say(&format!("trace {:016x}", run.hash));
                run.failures.iter().for_each(|failure| say(failure));
                total.add(seed, run);
                say(&total.to_string());
                exit(total.failed.is_empty())
            }
            Self::Twice { seed } => {
                let [first, second] = [(); 2].map(|()| ensemble::Recipe::of(seed).run(None));
                say(&format!("first  {:016x} after {} events", first.hash, first.events));
                say(&format!("second {:016x} after {} events", second.hash, second.events));
                exit((first.hash, first.events) == (second.hash, second.events))
            }
            Self::Planted => exit(find_in_ensembles()),
            Self::Soak { minutes, seed_from } => {
                let (began, first) = (now(), seed_from.unwrap_or_else(fresh_seed));
                say(&format!("seeds from {first}"));
                let mut total = Summary::default();
                let mut seed = first;
                while began.elapsed_now() < Duration::from_secs(minutes * 60) {
                    let run = ensemble::Recipe::of(seed).run(None);
                    run.failures.iter().for_each(|failure| say(&format!("seed {seed}: {failure}")));
                    total.add(seed, run);
                    seed += 1;
                }
                total.wall = began.elapsed_now();
                say(&total.to_string());
                exit(total.failed.is_empty())
            }
        }
    }
}

/// Looks for the planted bugs, several at once, and prints a line of the table for each as soon as it is found.
fn find_planted(minutes: u64, minutes_total: u64, jobs: usize, only: Option<Planted>) -> ExitCode {
    let bugs: Vec<Planted> = planted::ALL.into_iter().filter(|bug| only.is_none_or(|only| only == *bug)).collect();
    let box_end = now() + Duration::from_secs(minutes_total * 60);
    let (next, found) = (AtomicUsize::new(0), AtomicUsize::new(0));
    say("planted bug             seed  simulated s  wall s  found by");
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some(bug) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let limit = box_end.min(now() + Duration::from_secs(minutes * 60));
                    found.fetch_add(usize::from(look_for(*bug, limit)), Ordering::Relaxed);
                }
            });
        }
    });
    let found = found.into_inner();
    say(&format!("planted bugs found          {found} of {}", bugs.len()));
    exit((only.is_some() || find_in_ensembles()) & (found == bugs.len()))
}

/// As [`find_planted`], of the bugs that are planted in ensembles.
fn find_in_ensembles() -> bool {
    say("bug of ensembles        seed  simulated s  wall s  found by");
    let mut found = 0;
    for bug in ensemble::ALL {
        let (began, mut simulated_ms) = (now(), 0);
        let hit = (1..=ensemble::SEEDS_MAX).find_map(|seed| {
            let recipe = ensemble::Recipe::planted(seed, bug);
            let run = recipe.run(None);
            simulated_ms += run.simulated_ms;
            let is_new = || ensemble::Recipe { bug: None, ..recipe }.run(None).failures.is_empty();
            run.failures.first().filter(|_| is_new()).map(|failure| (seed, failure.clone()))
        });
        found += usize::from(hit.is_some());
        let name = clap::ValueEnum::to_possible_value(&bug).map_or(String::new(), |value| value.get_name().to_owned());
        let (seed, words) = hit.unwrap_or((ensemble::SEEDS_MAX, "NOT FOUND".to_owned()));
        let (seconds, wall) = (simulated_ms / 1000, began.elapsed_now().as_secs());
        say(&format!(
            "{name:<22} {seed:>5}  {seconds:>11}  {wall:>6}  {}",
            words.chars().take(140).collect::<String>()
        ));
    }
    say(&format!("bugs of ensembles found     {found} of {}", ensemble::ALL.len()));
    found == ensemble::ALL.len()
}

/// Runs short worlds with `bug` until a checker speaks in one that is fine without it, or until `limit`.
fn look_for(bug: Planted, limit: Instant) -> bool {
    let (began, mut simulated_ms, mut seed) = (now(), 0, 0);
    let found = loop {
        if now() >= limit {
            break None;
        }
        seed += 1;
        let world = planted::world(seed, bug);
        let run = world.clone().run(|| None);
        simulated_ms += run.simulated_ms;
        // What the same world shows without the bug is not found.
        if let Some(failure) = run.failures.first()
            && world.without_bug().run(|| None).failures.is_empty()
        {
            break Some(failure.clone());
        }
    };
    let name = clap::ValueEnum::to_possible_value(&bug).map_or(String::new(), |value| value.get_name().to_owned());
    let (seconds, wall) = (simulated_ms / 1000, began.elapsed_now().as_secs());
    let words = found.as_ref().map_or("NOT FOUND".to_owned(), |failure| failure.chars().take(140).collect());
    say(&format!("{name:<22} {seed:>5}  {seconds:>11}  {wall:>6}  {words}"));
    found.is_some()
}
