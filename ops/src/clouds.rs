//! Clouds as they are named on a command line.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use clap::Args;
use velum_node::config::CloudConfig;
use velum_protocol::admin::is_name;

use crate::error::Failure;

/// Names of clouds that were not given one, in order.
const NAMES: [&str; 16] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"];

/// One cloud: its name, if one was given, and its URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CloudArg {
    name: Option<String>,
    url: String,
}

/// The clouds of a command.
#[derive(Args, Debug)]
pub(crate) struct CloudArgs {
    /// A cloud: file:///dir, s3://bucket/prefix, az://container/prefix or gs://bucket/prefix; once for each. Names are
    /// a, b, c, ... by order unless given
    #[arg(long = "cloud", value_name = "[NAME=]URL", value_parser = cloud)]
    pub(crate) clouds: Vec<CloudArg>,
}

/// Reads `[NAME=]URL`.
fn cloud(text: &str) -> Result<CloudArg, String> {
    let named = text.split_once('=').filter(|(name, url)| is_name(name) && url.contains(":/"));
    let (name, url) = match named {
        Some((name, url)) => (Some(name.to_owned()), url),
        None => (None, text),
    };
    if !url.contains(":/") {
        return Err(format!("`{url}` is no URL; for a directory write file:///the/directory"));
    }
    Ok(CloudArg { name, url: url.to_owned() })
}

/// The clouds with the names they go by.
pub(crate) fn named(clouds: &[CloudArg]) -> Result<Vec<CloudConfig>, Failure> {
    if clouds.len() > NAMES.len() {
        return Err(Failure::usage(
            format!("{} clouds are given", clouds.len()),
            format!("give at most {}", NAMES.len()),
        ));
    }
    let named = clouds.iter().zip(NAMES).map(|(cloud, by_order)| CloudConfig {
        name: cloud.name.clone().unwrap_or_else(|| by_order.to_owned()),
        url: cloud.url.clone(),
        options: BTreeMap::new(),
    });
    Ok(named.collect())
}

/// Refuses clouds that are the same directory under two paths, as through a link: a copy there would count twice.
pub(crate) fn expect_apart(clouds: &[CloudConfig]) -> Result<(), Failure> {
    let mut known: Vec<(&str, PathBuf)> = Vec::new();
    for cloud in clouds {
        let Some(path) = folder(cloud).and_then(|path| path.canonicalize().ok()) else { continue };
        if let Some((other, _)) = known.iter().find(|(_, other)| path.starts_with(other) || other.starts_with(&path)) {
            let what = format!("clouds {other} and {} lie in the same place, {}", cloud.name, path.display());
            return Err(Failure::usage(what, "give each cloud once, under its own name"));
        }
        known.push((&cloud.name, path));
    }
    Ok(())
}

/// The local directory that plays a cloud.
pub(crate) fn folder(cloud: &CloudConfig) -> Option<PathBuf> {
    url::Url::parse(&cloud.url).ok().filter(|url| url.scheme() == "file")?.to_file_path().ok()
}

/// Three local directories that play clouds, below `dir`.
pub(crate) fn local(dir: &Path) -> Result<Vec<CloudConfig>, Failure> {
    NAMES
        .iter()
        .take(3)
        .map(|name| {
            let folder = dir.join("clouds").join(name);
            let url = url::Url::from_directory_path(&folder).map_err(|()| {
                Failure::usage(format!("{} cannot be written as a URL", folder.display()), "choose another --dir")
            })?;
            Ok(CloudConfig { name: (*name).to_owned(), url: url.to_string(), options: BTreeMap::new() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clouds_get_names_by_order_unless_given() {
        let args: Vec<_> =
            ["file:///x", "near=s3://bucket/p?a=b", "gs://b/p"].iter().map(|text| cloud(text).unwrap()).collect();
        let names: Vec<_> = named(&args).unwrap().into_iter().map(|cloud| (cloud.name, cloud.url)).collect();
        let expected = [("a", "file:///x"), ("near", "s3://bucket/p?a=b"), ("c", "gs://b/p")];
        assert_eq!(names, expected.map(|(name, url)| (name.to_owned(), url.to_owned())));
    }

    #[test]
    fn a_bare_path_is_told_how_to_be_a_url() {
        assert!(cloud("/srv/a").unwrap_err().contains("file:///"));
        assert!(cloud("a=/srv/a").unwrap_err().contains("file:///"));
    }
}
