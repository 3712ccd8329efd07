//! The chain of `vassal run`: which policies run on the request, and with which settings.
//!
//! They come from the command line's flags, or from a tenant's configuration with what the flags may add. A
//! setting's name speaks to every policy that has it, or to one as `POLICY.NAME`.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::run::{COMPARE_DIAL, MAX_TOKENS, RunArguments};
use crate::error::Error;
use crate::host::Host;
use crate::request::{FaultPolicy, LoadedPolicy, PolicyUse, Request};
use crate::tenant::{Asked, Tenant};

/// The chain of the command line, with its settings.
pub(super) fn use_policies(host: &Host, arguments: &RunArguments) -> Result<Vec<PolicyUse>, Error> {
    let mut names: Vec<(&str, bool)> = arguments.required.iter().map(|name| (name.as_str(), true)).collect();
    names.extend(arguments.policies.iter().map(|name| (name.as_str(), false)));
    let mut settings = arguments.settings.clone();
    if arguments.compare && names.is_empty() {
        names.push(("vas", false));
        if settings.is_empty() && host.heads().iter().any(|head| head.description.name == COMPARE_DIAL.0) {
            settings.push((COMPARE_DIAL.0.to_owned(), COMPARE_DIAL.1.to_owned()));
        }
    }
    let loaded: Vec<(Arc<LoadedPolicy>, bool)> = names
        .into_iter()
        .map(|(name, required)| Ok((host.load_policy(name)?, required)))
        .collect::<Result<_, Error>>()?;
    let named: Vec<(&str, &LoadedPolicy)> =
        loaded.iter().map(|(policy, _)| (policy.name.as_str(), policy.as_ref())).collect();
    let mut given: Vec<[Vec<(String, String)>; 2]> = vec![Default::default(); loaded.len()];
    for (layer, layer_settings) in [&settings, &arguments.tenant_settings].into_iter().enumerate() {
        for (name, value) in layer_settings {
            for place in addressees(&named, name)? {
                given[place][layer].push((own_name(named[place].0, name).to_owned(), value.clone()));
            }
        }
    }
    let mut used = Vec::new();
    for ((policy, required), [given, tenant]) in loaded.iter().zip(given) {
        // What a tenant requires fails closed, unless its own configuration says otherwise.
        let on_fault = if *required { FaultPolicy::Abort } else { arguments.on_fault };
        used.push(host.use_policy(policy, &tenant, &given, *required, on_fault)?);
    }
    Ok(used)
}

/// The request as a tenant's, with the policies and settings of the command line, and where its policies came from.
pub(super) fn of_tenant(
    host: &mut Host,
    arguments: &RunArguments,
    file: &Path,
    request: Request,
) -> Result<(Request, Vec<String>), Error> {
    let mut tenant = Tenant::open(host, file)?;
    let mut asked: Vec<Asked> =
        arguments.policies.iter().map(|name| Asked { name: name.clone(), ..Asked::default() }).collect();
    let loaded: Vec<(&str, &LoadedPolicy)> = asked
        .iter()
        .filter_map(|asked| tenant.policies().find(|(config, ..)| config.name == asked.name))
        .map(|(config, _, policy)| (config.name.as_str(), policy.as_ref()))
        .collect();
    let mut given = Vec::new();
    // What is not this tenant's has no settings here, and is refused by its name below.
    if loaded.len() == asked.len() {
        for (name, value) in &arguments.settings {
            given.extend(
                addressees(&loaded, name)?
                    .into_iter()
                    .map(|place| (place, (own_name(loaded[place].0, name).to_owned(), value.clone()))),
            );
        }
    }
    for (place, setting) in given {
        asked[place].settings.push(setting);
    }
    let most = tenant.config().limits.max_tokens;
    let max_tokens = arguments.max_tokens.unwrap_or(MAX_TOKENS.min(most));
    let request = Request { max_tokens: Some(max_tokens), ..request };
    let request = tenant.request(request, &asked, Instant::now())?;
    let source = |used: &PolicyUse| {
        let entry = tenant.policies().find(|(_, _, policy)| Arc::ptr_eq(policy, &used.policy));
        entry.map_or_else(String::new, |(config, ..)| config.source.clone())
    };
    let sources = request.policies.iter().map(source).collect();
    Ok((request, sources))
}

/// The policies, by the names they go by here, that a setting's name speaks to.
fn addressees(loaded: &[(&str, &LoadedPolicy)], name: &str) -> Result<Vec<usize>, Error> {
    let has = |(known_as, policy): &(&str, &LoadedPolicy)| {
        let own = own_name(known_as, name);
        policy.manifest.settings.iter().any(|setting| setting.name == own)
    };
    let found: Vec<usize> = (0..loaded.len()).filter(|&place| has(&loaded[place])).collect();
    match (found.is_empty(), loaded.len()) {
        // A lone policy refuses the name itself, and knows the near ones.
        (true, 1) => Ok(vec![0]),
        (true, 0) => {
            Err(Error::Usage(format!("the setting {name:?} is for no policy: there is no --policy and no --require")))
        }
        (true, _) => {
            let settings = loaded.iter().flat_map(|(_, policy)| &policy.manifest.settings);
            Err(Error::unknown("setting", name, settings.map(|setting| setting.name.as_str())))
        }
        _ => Ok(found),
    }
}

/// A setting's name without the policy's before it.
fn own_name<'a>(known_as: &str, name: &'a str) -> &'a str {
    name.strip_prefix(known_as).and_then(|rest| rest.strip_prefix('.')).unwrap_or(name)
}
