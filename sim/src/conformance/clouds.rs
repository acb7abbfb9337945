//! An object store keeps what it is given under the name it was given, and says what it does not have.
//!
//! Only what the node rests on is asked for. Conditional creation is asked for without a race unless the caller says that
//! the store decides races: the node treats it as a hint.

use std::{collections::BTreeMap, rc::Rc};

use bytes::Bytes;
use futures_util::future::join_all;
use velum_node::env::{CloudStore, CloudStoreError, Env};

/// What the store under test can do.
#[derive(Clone, Copy, Debug)]
pub struct Abilities {
    /// Of several creates of one name at once exactly one succeeds.
    pub decides_races: bool,
}

/// Runs the suite on the store at `url`, under a path that nothing else uses.
///
/// # Panics
/// When the store breaks its contract.
pub async fn run(env: &Env, url: &str, options: &BTreeMap<String, String>, abilities: Abilities) {
    let open = || env.clouds.open(url, options).expect("the store can be opened");
    let store = open();
    let under = format!("conformance/{:016x}", env.entropy.number());
    let name = |name: &str| format!("{under}/{name}");
    missing_objects_say_so(&store, &name("missing")).await;
    objects_read_back_whole_and_in_part(&store, &name("whole")).await;
    empty_and_large_objects_are_kept(&store, &name("sizes")).await;
    a_put_replaces(&store, &name("replaced")).await;
    a_create_does_not(&store, &name("created")).await;
    a_get_is_bounded(&store, &name("bounded")).await;
    ranges_beyond_the_end_are_refused(&store, &name("ranges")).await;
    a_deleted_object_is_gone(&store, &name("deleted")).await;
    requests_at_once_do_not_mix(&store, &name("mixed")).await;
    names_are_listed_in_order_and_pages(&store, &name("listed")).await;
    a_store_opened_again_holds_the_same(&store, &open(), &name("again")).await;
    if abilities.decides_races {
        one_of_many_creates_succeeds(&store, &name("race")).await;
    }
    nonsense_urls_and_options_are_refused(env, url);
}

type Store = Rc<dyn CloudStore>;

async fn put(store: &Store, name: &str, body: &[u8]) {
    store.put(name, Bytes::copy_from_slice(body)).await.expect("an object can be put");
}

async fn missing_objects_say_so(store: &Store, name: &str) {
    assert!(matches!(store.get(name, 100).await, Err(CloudStoreError::NotFound)));
    assert!(matches!(store.get_range(name, 0..1).await, Err(CloudStoreError::NotFound)));
    assert!(matches!(store.head(name).await, Err(CloudStoreError::NotFound)));
    store.delete(name).await.expect("deleting what is not there is no error");
}

async fn objects_read_back_whole_and_in_part(store: &Store, name: &str) {
    let body: Vec<u8> = (0..=255).cycle().take(5000).collect();
    put(store, name, &body).await;
    assert_eq!(store.head(name).await.expect("it is there"), 5000);
    assert_eq!(store.get(name, 5000).await.expect("it is there"), body);
    for range in [0..1, 0..5000, 10..20, 4999..5000] {
        let part = store.get_range(name, range.clone()).await.expect("the range is within the object");
        let (start, end) = (usize::try_from(range.start), usize::try_from(range.end));
        assert_eq!(Some(&part[..]), body.get(start.expect("small")..end.expect("small")), "{range:?}");
    }
}

async fn empty_and_large_objects_are_kept(store: &Store, name: &str) {
    put(store, &format!("{name}/empty"), b"").await;
    assert_eq!(store.head(&format!("{name}/empty")).await.expect("it is there"), 0);
    assert_eq!(store.get(&format!("{name}/empty"), 0).await.expect("it is there"), Bytes::new());
    let large: Vec<u8> = (0..9_000_000_u32).flat_map(|number| number.to_le_bytes().into_iter().take(1)).collect();
    put(store, &format!("{name}/large"), &large).await;
    let kept = store.get(&format!("{name}/large"), 16 << 20).await.expect("it is there");
    assert!(kept == large, "an object of 9 MB reads back otherwise");
}

async fn a_put_replaces(store: &Store, name: &str) {
    put(store, name, b"one, which is longer").await;
    put(store, name, b"two").await;
    assert_eq!(store.get(name, 100).await.expect("it is there"), "two");
}

async fn a_create_does_not(store: &Store, name: &str) {
    store.create(name, Bytes::from_static(b"one")).await.expect("nothing has the name");
    let second = store.create(name, Bytes::from_static(b"two")).await;
    assert!(matches!(second, Err(CloudStoreError::AlreadyExists)), "{second:?}");
    assert_eq!(store.get(name, 100).await.expect("it is there"), "one");
}

async fn a_get_is_bounded(store: &Store, name: &str) {
    put(store, name, &[1; 1000]).await;
    assert!(matches!(store.get(name, 999).await, Err(CloudStoreError::Refused(_))));
    assert_eq!(store.get(name, 1000).await.expect("it fits exactly").len(), 1000);
}

async fn ranges_beyond_the_end_are_refused(store: &Store, name: &str) {
    put(store, name, &[1; 1000]).await;
    for range in [999..1001, 1000..1001, 5000..6000, 0..1 << 40] {
        let refused = store.get_range(name, range.clone()).await;
        assert!(matches!(refused, Err(CloudStoreError::Refused(_))), "{range:?}: {refused:?}");
    }
    assert!(matches!(store.get_range(name, 5..5).await, Err(CloudStoreError::Refused(_))));
}

async fn a_deleted_object_is_gone(store: &Store, name: &str) {
    put(store, name, b"here").await;
    for _ in 0..2 {
        store.delete(name).await.expect("it can be deleted");
        assert!(matches!(store.head(name).await, Err(CloudStoreError::NotFound)));
    }
    put(store, name, b"again").await;
    assert_eq!(store.get(name, 100).await.expect("it is there again"), "again");
}

async fn requests_at_once_do_not_mix(store: &Store, name: &str) {
    let puts = (0..40_usize).map(|number| store.put(&format!("{name}/{number}"), vec![1; number * 100].into()));
    assert!(join_all(puts).await.iter().all(Result::is_ok), "a put among many failed");
    let heads = join_all((0..40_usize).map(|number| store.head(&format!("{name}/{number}")))).await;
    let lengths: Vec<u64> = heads.into_iter().map(|head| head.expect("it is there")).collect();
    assert_eq!(lengths, (0..40).map(|number| number * 100).collect::<Vec<_>>());
}

async fn names_are_listed_in_order_and_pages(store: &Store, under: &str) {
    assert_eq!(store.list(under, "", 10).await.expect("it can be listed"), Vec::<String>::new());
    let names: Vec<String> = ["a/1", "a/2", "b", "c"].map(|name| format!("{under}/{name}")).into();
    for name in names.iter().rev() {
        put(store, name, b"x").await;
    }
    put(store, &format!("{under}-beside"), b"x").await;
    assert_eq!(store.list(under, "", 100).await.expect("it can be listed"), names);
    assert_eq!(store.list(&format!("{under}/a"), "", 100).await.expect("it can be listed").len(), 2);
    let mut paged = Vec::new();
    while let Some(page) = Some(store.list(under, paged.last().map_or("", |name: &String| name), 2).await) {
        let page = page.expect("it can be listed");
        assert!(page.len() <= 2, "a page of two holds {}", page.len());
        if page.is_empty() {
            break;
        }
        paged.extend(page);
    }
    assert_eq!(paged, names);
}

async fn a_store_opened_again_holds_the_same(store: &Store, again: &Store, name: &str) {
    put(store, name, b"same").await;
    assert_eq!(again.get(name, 100).await.expect("it is there"), "same");
}

async fn one_of_many_creates_succeeds(store: &Store, name: &str) {
    for round in 0..5 {
        let name = format!("{name}/{round}");
        let creates = (0..8_u8).map(|number| store.create(&name, vec![number; 100].into()));
        let outcomes = join_all(creates).await;
        let won: Vec<usize> =
            outcomes.iter().enumerate().filter(|(_, outcome)| outcome.is_ok()).map(|(number, _)| number).collect();
        let lost = outcomes.iter().filter(|outcome| matches!(outcome, Err(CloudStoreError::AlreadyExists))).count();
        assert_eq!((won.len(), lost), (1, 7), "{outcomes:?}");
        let kept = store.get(&name, 100).await.expect("it is there");
        assert_eq!(kept.first().map(|number| usize::from(*number)), won.first().copied(), "the loser's body was kept");
    }
}

fn nonsense_urls_and_options_are_refused(env: &Env, url: &str) {
    for nonsense in ["", "nonsense", "nonsense://x/y", "/dir"] {
        let refused = env.clouds.open(nonsense, &BTreeMap::new());
        assert!(matches!(refused, Err(CloudStoreError::Refused(_))), "{nonsense:?} was opened");
    }
    let options = BTreeMap::from([("no_such_option".to_owned(), "1".to_owned())]);
    assert!(matches!(env.clouds.open(url, &options), Err(CloudStoreError::Refused(_))), "an unknown option was taken");
}
